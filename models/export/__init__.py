"""Export networks to ONNX graphs and to weights for torch."""
