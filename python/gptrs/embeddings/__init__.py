"""Vectors for texts and tokens: made, searched, trained, read from files."""
