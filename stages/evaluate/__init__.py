"""Decodes a split with a model and writes its word and character error rates."""
