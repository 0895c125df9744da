"""A plain long convolution layer, without gates."""
