"""The contract kit: one small function and one sentence of reason for each promise a mixer makes."""
