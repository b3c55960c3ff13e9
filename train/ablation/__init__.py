"""Tables of runs over one cache."""
