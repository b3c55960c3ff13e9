"""clipocr: an offline CLIP feature cache and a lightweight trainer for scene text recognition."""
