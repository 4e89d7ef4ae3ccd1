"""The blow-up time $T^*$: the result, the methods, one state and batches."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
