"""Architectures and bundled weights."""
