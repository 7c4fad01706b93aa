"""Networks to ONNX graphs and stored weights."""
