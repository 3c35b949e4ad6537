"""What a run leaves for people and programs to look at: metrics, curves, samples, a page."""
