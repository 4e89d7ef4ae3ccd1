"""States along the way to the blow-up, and when the final stage begins."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
