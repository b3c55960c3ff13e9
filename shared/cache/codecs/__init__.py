"""How pixels and features become stored numbers, and back."""
