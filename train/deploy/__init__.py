"""Using a trained student: read, export, hub."""
