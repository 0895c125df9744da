"""H3: a shift and a diagonal state space model with multiplicative gates."""
