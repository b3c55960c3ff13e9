"""The commands of stage 2."""
