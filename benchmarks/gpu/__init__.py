"""`make gpu`: what a machine with a GPU has to show, in five parts; see `run`."""
