"""A run: from an image and a model to a finished result.

In the order in which one image meets them: `infer` (the story), `target` (what is written, and whether it may be),
`opening` and `prepare` (what was named, as a job that fits together), `plan` (what it will take), `execute` with
`journal` (what is left to do), `sweep` (one unit, from files to shards) or `cluster` (many, among workers), `report`.
"""
