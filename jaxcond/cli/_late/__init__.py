"""What commands load once they compute: JAX, its settings, and progress."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
