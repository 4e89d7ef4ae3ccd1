"""The paper's statements, and our own, as numerical checks that anyone can run."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
