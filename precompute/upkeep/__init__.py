"""Keeping a cache whole: verify, repair, copy."""
