"""Engines: ONNX Runtime, OpenVINO, identity; found by name, imported only when used."""
