"""Instruction tuning: examples in the book's template, packed into rows for training."""
