"""Builders of engine files: TensorRT plans, AOTInductor packages."""
