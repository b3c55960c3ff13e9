"""Stage 2: the student, trained from a feature cache. Never imports open_clip or precompute."""
