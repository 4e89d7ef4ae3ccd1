"""Real networks: training through the plateau, and what the effective dynamics say of it."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
