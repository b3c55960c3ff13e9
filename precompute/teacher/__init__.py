"""Frozen CLIP, and how labels become its tokens."""
