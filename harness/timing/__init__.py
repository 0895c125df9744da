"""Clocks, device facts and the cost of a model. Nothing here is imported on listing."""
