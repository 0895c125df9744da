"""RWKV-4: a decaying weighted average of values."""
