"""Perplexity of recalled and of other tokens on real text. Importing this package imports neither numpy nor torch."""
