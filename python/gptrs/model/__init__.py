"""The GPT itself: the book's modules, the ways past them that compute the same, the loss."""
