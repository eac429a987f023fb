"""Export: from a checkpoint to an engine file that `tilelab infer` runs without flags."""
