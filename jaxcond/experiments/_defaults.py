"""Default settings of the figures of the paper."""

# Figure 2b: exponents alpha of the scale of the initial weights, m^-alpha.
ALPHAS = tuple(0.25 * step for step in range(1, 13))
# Figure 1: iteration from which training is repeated, and the factor that divides its rate.
RESTART, SLOWER = 205_000, 10
