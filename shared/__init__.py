"""What both stages must agree on: the cache format, charsets, images, LMDBs, errors."""
