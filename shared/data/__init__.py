"""Word images as people have them: LMDBs, folders, encoded pictures."""
