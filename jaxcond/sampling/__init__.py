"""Samples of distributions: drawn by index, by quasi-Monte Carlo, and at infinite width."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
