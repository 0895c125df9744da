"""Sweeps: what is to be run, and running each trial in a process of its own."""
