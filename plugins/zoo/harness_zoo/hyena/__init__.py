"""Hyena: gated long convolutions with implicit filters."""
