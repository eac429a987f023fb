"""Zarr as tilelab reads and writes it: metadata, chunks, shards, layout and pyramid levels."""
