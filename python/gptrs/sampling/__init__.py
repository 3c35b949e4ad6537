"""From logits to a token: settings, constraints, the sampler. Nothing here asks a model."""
