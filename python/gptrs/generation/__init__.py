"""Text from a model: the book's functions, the Generator, scores and searches."""
