"""Stage 1: frozen CLIP over word LMDBs, into a feature cache. May import open_clip."""
