"""Reading pictures of single words: what is read, by what, and where the pictures come from."""
