"""Weights on the disk: our checkpoints, and those of Hugging Face, nanoGPT and the book."""
