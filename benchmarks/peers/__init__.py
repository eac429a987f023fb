"""What users would pick instead, each as its documentation tells users to; one process each, in an environment apart.

Nothing here imports tilelab: every adapter is what a user of that library would write around the same weights.
"""
