"""What answers the sampling loop with logits: PyTorch, transformers, or the native engine."""
