"""The effective flow followed in time: integration, its step control, and its clocks."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
