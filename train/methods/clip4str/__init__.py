"""CLIP4STR: a visual and a cross-modal decoder that predict and refine, on CLIP itself."""

from .settings import Clip4Str

METHOD = Clip4Str
