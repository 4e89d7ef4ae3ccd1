r"""jaxcond: the initial condensation of three-layer networks, in JAX.

With small initialisation, gradient descent on a three-layer network follows, in rescaled time, the
effective dynamics $a' = bc,\ b' = ac^T,\ c' = b^Ta$ of Z.-A. Chen and T. Luo (*On the dynamics of
three-layer neural networks: initial condensation*), which blow up at a finite time $T^*$.

All quantities are dimensionless, and times are in units of the effective model. For a network with
risk $R = \frac{1}{2n}\sum_i (f(x_i) - y_i)^2$, weights of standard deviation $\varepsilon$ and
activation $\sigma$, gradient flow time $t$ is $\bar t = \varepsilon\,\sigma'(0)^2\,\|\frac1n\sum_i
y_i x_i\|\,t$ of it. `jaxcond.networks` trains such networks, and its times are training times.
"""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)

__version__ = "0.2.0"
