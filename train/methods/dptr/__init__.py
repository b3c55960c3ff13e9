"""DPTR: a decoder that learns to read from text features alone."""

from .settings import Dptr

METHOD = Dptr
