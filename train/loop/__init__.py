"""One run: steps, checkpoints, records."""
