"""From LMDBs to a sealed cache."""
