"""BaseConv: the gated long convolution."""
