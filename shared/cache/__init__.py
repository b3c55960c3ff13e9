"""The cache format: what both stages must agree on to the byte."""
