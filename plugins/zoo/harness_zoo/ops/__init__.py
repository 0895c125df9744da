"""Operators shared by the mixers of the zoo."""
