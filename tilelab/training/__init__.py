"""Training: from a recipe and a folder of micrographs with masks to a checkpoint that describes itself."""
