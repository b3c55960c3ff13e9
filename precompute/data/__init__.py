"""Making and checking word LMDBs."""
