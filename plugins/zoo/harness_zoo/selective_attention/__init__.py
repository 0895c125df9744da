"""Attention of selected positions only."""
