"""What the figures of the paper are computed at unless told otherwise."""

# Exponents of the width in the scale of the initial weights, of figure 2b.
ALPHAS = tuple(0.25 * step for step in range(1, 13))
# Iteration from which figure 1 trains again with a smaller rate, and by how much smaller.
RESTART, SLOWER = 205_000, 10
