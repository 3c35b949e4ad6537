"""A model watched at work: the way of a text through it, and figures for the pictures."""
