"""Attention inside a document."""
