"""Float ONNX and images in, ranges out."""
