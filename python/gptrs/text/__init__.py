"""Text and tokens: reading, encoding, decoding. Nothing here needs torch."""
