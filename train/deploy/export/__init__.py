"""A trained recogniser in formats that need no clipocr: ONNX, safetensors."""
