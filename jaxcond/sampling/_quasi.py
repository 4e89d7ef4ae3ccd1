r"""Randomised quasi-Monte Carlo over the leading entries of the reduced Gaussian ensemble.

The entries of a reduced Gaussian state are independent with known laws (`Gaussian`), and the first
few carry nearly all the variance of $T^*$. Here they are inverse distribution functions of the
coordinates of a scrambled Sobol sequence,

$$(\|a\|, \|c\|, T_{11}, T_{12}, T_{21}, T_{22}, T_{23}, T_{32}, \dots)_k = F_k^{-1}(u_k),$$

the most important first; later ones are pseudo-random. Every sample has the exact law of the
ensemble, so means over one replicate are unbiased; replicates are scrambled independently, and
their means give the standard error.

Sources: A. B. Owen, *Monte Carlo variance of scrambled net quadrature*, SIAM J. Numer. Anal. 34
(1997) 1884-1910; J. Matoušek, *On the L2-discrepancy for anchored boxes*, J. Complexity 14 (1998)
527-556, for the scramble; N. M. Temme, *Asymptotic inversion of incomplete gamma functions*, Math.
Comp. 58 (1992) 755-764, for $\chi_k$ at large $k$.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Integer, PRNGKeyArray
from scipy.special import gammainccinv, gammaincinv, ndtri
from scipy.stats import qmc

from .._state import State
from ..blowup import AbstractMethod, AbstractSource, Form, HostStates, Samples, as_indices
from ._draws import Distribution, HostSampler
from ._entries import degrees_of_entries
from ._keys import check_seed, sample_key
from ._widths import check_width

# Dimension of the reduced states that the sequence drives in full.
_DIM = 12
# Points are multiples of 2^-52, moved to the centres of their cells: odd multiples of 2^-53, which
# float64 holds exactly, as it does 1 - u, and never 0 or 1.
_BITS = 52
# Points skipped at a time, and the largest gap between requested points that is generated with
# them.
_SKIP, _GAP = 1 << 13, 1 << 8
# Distinguishes the random streams of the scrambles from others with the same seed.
_STREAM = 0x50B01
# Stored entries are padded to a power of two, at least this one.
_LEAST = 32

# From this many degrees of freedom, chi is expanded asymptotically. Expansion and SciPy's inverse
# agree to two units of rounding at 5e3, but SciPy's is off by 2e-12 at 1e6 and by 4e-6 (a fifth of
# a standard deviation) from 1e8 on.
_EXPANDED = 1e4
# sqrt(lambda) by powers of eta, eta^2 / 2 = lambda - 1 - log(lambda).
_ROOT = (1, 1/2, 1/24, -1/144, 13/17280, 1/34560, -353/8709120, 1003/87091200,
         -1423/836075520)  # fmt: skip
# eta - eta_0 at order 1/alpha, 1/alpha^2, 1/alpha^3 by powers of eta_0, alpha = k/2.
_SHIFTS = (
    (-1/3, 1/36, 1/1620, -7/6480, 5/18144, -11/382725, -101/16329600),
    (-7/405, -7/2592, 533/204120, -1579/2099520, 109/1749600),
    (449/102060, -63149/20995200, 29233/36741600),
)  # fmt: skip


@runtime_checkable
class Scaled(Distribution, Protocol):
    """The Gaussian ensemble: see `ensembles.Gaussian`."""

    p: Any
    q: Any
    scales: tuple[Any, Any, Any]


def chi_quantile(degrees: int | float, u: np.ndarray) -> np.ndarray:
    r"""The inverse distribution function of $\chi_k$, to a few units of rounding at any $k > 0$.

    With $\alpha = k/2$ it is $\sqrt{2 P^{-1}(\alpha, u)}$; for large $k$, with $\Phi$ the normal
    distribution and $\eta_0 = \Phi^{-1}(u)/\sqrt\alpha$, Temme's

    $$\chi = \sqrt{k\lambda}, \quad \tfrac12\eta^2 = \lambda - 1 - \log\lambda, \quad
      \eta = \eta_0 + \frac{\varepsilon_1(\eta_0)}{\alpha} + \frac{\varepsilon_2(\eta_0)}{\alpha^2}
      + \dots$$

    **Arguments:** `degrees`, $k$; `u`, strictly between 0 and 1. Both tails keep full relative
    accuracy.
    """
    above = u > 0.5
    tail = np.where(above, 1 - u, u)
    alpha = degrees / 2
    if degrees < _EXPANDED:
        low, high = gammaincinv(alpha, tail), gammainccinv(alpha, tail)
        return np.sqrt(2 * np.where(above, high, low))
    eta = _normal_quantile(u) / np.sqrt(alpha)
    shift = np.zeros_like(eta)
    for coefficients in reversed(_SHIFTS):
        shift = (np.polynomial.polynomial.polyval(eta, coefficients) + shift) / alpha
    return np.sqrt(degrees) * np.polynomial.polynomial.polyval(eta + shift, _ROOT)


def _normal_quantile(u: np.ndarray) -> np.ndarray:
    return np.where(u > 0.5, -ndtri(1 - u), ndtri(u))


def _skip(engine: qmc.Sobol, count: int) -> None:
    # `Sobol.fast_forward` takes no more than 32 bits (SciPy 1.17), and is hardly faster.
    while count > 0:
        step = min(_SKIP, count) if engine.num_generated else 1
        engine.random(step)
        count -= step


def _take(engine: qmc.Sobol, count: int) -> np.ndarray:
    # At the start of a sequence, SciPy warns of numbers that are not powers of two; 1 is one.
    first = [engine.random(1)] if engine.num_generated == 0 and count else []
    return np.concatenate([*first, engine.random(count - len(first))])


def _points(seed: int, replicate: int, positions: np.ndarray, num: int) -> np.ndarray:
    """Points of one replicate at increasing positions of its sequence, inside the unit cube."""
    stream = np.random.SeedSequence(seed, spawn_key=(_STREAM, replicate))
    engine = qmc.Sobol(num, scramble=True, bits=_BITS, rng=np.random.default_rng(stream))
    points = np.empty((positions.size, num))
    ends = np.flatnonzero(np.diff(positions) > _GAP) + 1
    for run in np.split(np.arange(positions.size), ends):
        wanted = positions[run]
        first, last = int(wanted[0]), int(wanted[-1])
        _skip(engine, first - engine.num_generated)
        points[run] = _take(engine, last + 1 - first)[wanted - first]
    return points + 2.0 ** -(_BITS + 1)


def sobol_entries(
    p: int | float,
    q: int | float,
    indices: int | np.integer | Sequence[int] | np.ndarray,
    *,
    seed: int,
    num_replicates: int = 16,
    dim: int = _DIM,
) -> np.ndarray:
    r"""Leading entries of reduced Gaussian states of unit scales, from scrambled Sobol sequences.

    Sample $i$ belongs to replicate $r = i \bmod R$ and is point $\lfloor i/R \rfloor$ of that
    replicate's own scrambled sequence: it depends on the seed, $R$ and $i$ alone, and more samples
    extend every sequence. Use $R\,2^m$ samples, so that every sequence is balanced.

    **Arguments:**

    - `p`, `q`: the widths, positive whole numbers of any size.
    - `indices`: a number $n$ for the first $n$ samples, or their global indices. Index $i$ skips
      $i/R$ points, at about 20 ns each.
    - `seed`: from 0 to 2^63 - 1.
    - `num_replicates`: $R$. The standard error is estimated with $R - 1$ degrees of freedom, and
      the gain over plain sampling grows with the length of the sequences, $n/R$.
    - `dim`: dimension of the states whose entries all come from the sequence.

    **Returns:** an array of shape `(n, 3 dim)`, the order that of `entry_names`: normal entries
    $N(0,1)$, others $\chi_k$; zero beyond a width, as in `Gaussian.sample_reduced`.

    **Raises:** `ValueError` for values out of range.
    """
    check_width("p", p)
    check_width("q", q)
    check_seed(seed)
    if num_replicates < 1:
        raise ValueError(f"Argument `num_replicates` must be positive, but is {num_replicates}.")
    if dim < 1:
        raise ValueError(f"Argument `dim` must be positive, but is {dim}.")
    indices = as_indices(indices)
    num = 3 * dim
    points = np.empty((indices.size, num))
    replicates, positions = indices % num_replicates, indices // num_replicates
    for replicate in np.unique(replicates):
        mine = np.flatnonzero(replicates == replicate)
        ordered, inverse = np.unique(positions[mine], return_inverse=True)
        points[mine] = _points(seed, int(replicate), ordered, num)[inverse]
    for column, degrees in zip(points.T, degrees_of_entries(p, q, num), strict=True):
        if degrees == 0:
            column[:] = 0
        else:
            column[:] = _normal_quantile(column) if degrees < 0 else chi_quantile(degrees, column)
    return points


class QuasiDraws(AbstractSource):
    """Samples of the reduced Gaussian ensemble with given leading entries, by their position.

    - `ensemble`, `key`: sample `indices[i]` is that of the ensemble with this key, but for
    - `entries`: the leading entries of sample `indices[i]` at unit scale, from `sobol_entries`.
    - `dim`: dimension in which samples are drawn.
    """

    ensemble: Scaled
    key: PRNGKeyArray
    indices: Integer[Array, " n"]
    entries: Float[Array, "n num"]
    dim: int = eqx.field(static=True, default=_DIM)

    @property
    def truncated(self) -> bool:
        """True: the samples are truncated states."""
        return True

    @property
    def form(self) -> Form:
        """The form: rank 1, in the dimension in which samples are drawn."""
        return Form(1, (self.dim, self.dim), np.dtype(self.entries.dtype))

    def suited_to(self, method: AbstractMethod) -> "QuasiDraws":
        """The samples in the dimension that a method works in."""
        dim = method.reduced_dim(1)
        dim = self.dim if dim is None else dim
        return QuasiDraws(
            ensemble=self.ensemble,
            key=self.key,
            indices=self.indices,
            entries=self.entries,
            dim=dim,
        )

    def __call__(self, index: Integer[Array, ""]) -> State:
        """The sample at a position among `indices`."""
        entries = lax.dynamic_index_in_dim(self.entries, index, 0, keepdims=False)
        leading, dim = entries.size // 3, self.dim
        scale_a, scale_b, scale_c = (jnp.asarray(s, entries.dtype) for s in self.ensemble.scales)
        first = jnp.zeros(dim, entries.dtype).at[0].set(1)
        size = max(leading, dim)
        diagonal, upper, lower = (
            jnp.pad(entries[start::3], (0, size - entries[start::3].size)) for start in (2, 3, 4)
        )
        b = jnp.diag(diagonal) + jnp.diag(upper[:-1], 1) + jnp.diag(lower[:-1], -1)
        b = scale_b * b[:dim, :dim]
        if dim > leading:
            key = sample_key(self.key, self.indices[index])
            rest = self.ensemble.sample_reduced(key=key, dim=dim, dtype=entries.dtype).b
            given = np.arange(dim) < leading
            b = jnp.where(given[:, None] & given, b, rest)
        return State.from_vectors(scale_a * entries[0] * first, b, scale_c * entries[1] * first)

    def on_host(self) -> HostSampler | None:
        """The samples as NumPy arrays; further entries come from the ensemble."""
        entries, indices, dim = np.asarray(self.entries), np.asarray(self.indices), self.dim
        leading = entries.shape[-1] // 3
        scale_a, scale_b, scale_c = (float(scale) for scale in self.ensemble.scales)
        beyond = self.ensemble.reduced_on_host(self.key, dim) if dim > leading else None
        if dim > leading and beyond is None:
            return None

        def at(positions: np.ndarray) -> HostStates:
            some, count = entries[positions], positions.size
            a, c = np.zeros((2, count, 1, dim), entries.dtype)
            b = np.zeros((count, dim, dim), entries.dtype)
            if beyond is not None:
                b[:] = beyond(indices[positions]).b
            a[:, 0, 0], c[:, 0, 0] = scale_a * some[:, 0], scale_c * some[:, 1]
            own = np.arange(min(leading, dim))
            b[:, own, own] = scale_b * some[:, 2::3][:, own]
            b[:, own[:-1], own[1:]] = scale_b * some[:, 3::3][:, own[:-1]]
            b[:, own[1:], own[:-1]] = scale_b * some[:, 4::3][:, own[:-1]]
            return HostStates(a, b, c, np.ones((count, 1), entries.dtype))

        return at


def quasi_draws(
    ensemble: Scaled,
    indices: int | np.integer | Sequence[int] | np.ndarray,
    *,
    key: PRNGKeyArray,
    seed: int,
    num_replicates: int = 16,
) -> Samples:
    """The samples of `ensembles.Gaussian.quasi`.

    About 300 bytes per sample are stored. The number of samples is padded to a power of two, so
    that different numbers share programs.
    """
    indices = as_indices(indices)
    dtype = jnp.result_type(float)
    p, q = float(ensemble.p), float(ensemble.q)
    numbers = jax.tree.map(lambda number: jnp.asarray(float(number), dtype), ensemble)
    entries = sobol_entries(p, q, indices, seed=seed, num_replicates=num_replicates)
    room = max(_LEAST, 1 << (indices.size - 1).bit_length()) - indices.size
    source = QuasiDraws(
        numbers,
        key,
        jnp.asarray(np.pad(indices, (0, room), mode="edge")),
        jnp.asarray(np.pad(entries, ((0, room), (0, 0)), mode="edge"), dtype),
    )
    return Samples(source, np.arange(indices.size, dtype=np.int32))
