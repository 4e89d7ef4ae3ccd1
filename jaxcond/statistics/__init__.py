"""Statistics of samples: streams of any length in bounded memory, in float64 whatever the input."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
