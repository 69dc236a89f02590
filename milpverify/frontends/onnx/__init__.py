"""ONNX networks: lowering rules, ONNX Runtime, and the comparison of the two."""
