"""Recognisers, and the tokenizer of labels."""
