"""Windows as batches: the book's dataset, and a loader for stores of any size."""
