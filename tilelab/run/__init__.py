"""A run: from an image and a model to a finished result. `infer.py` is the whole story."""
