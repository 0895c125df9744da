"""Attention to the last positions."""
