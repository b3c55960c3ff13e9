"""CLIP-OCR (MM'23): symmetrical linguistic feature distillation."""

from .settings import ClipOcr

METHOD = ClipOcr
