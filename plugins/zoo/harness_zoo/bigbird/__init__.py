"""Block-sparse attention: window, global and random blocks."""
