"""A trained student in formats that need no clipocr: ONNX, TorchScript, safetensors."""
