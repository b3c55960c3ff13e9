"""CLIP-OCR (MM'23): symmetrical linguistic feature distillation."""
