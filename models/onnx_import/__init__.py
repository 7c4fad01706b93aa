"""Take in classifiers that come as ONNX graphs of any framework."""
