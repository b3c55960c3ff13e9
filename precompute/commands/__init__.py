"""The commands of stage 1."""
