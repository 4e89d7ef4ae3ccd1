r"""What is recorded of a network while it trains: the indicators of `State`, and a few more.

The indicators are read off the same `State` that the effective dynamics moves, so that training and
simulation go through the same code.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._energy import energy, squared_norms
from .._state import State
from ..indicators import (
    CONDITIONS,
    Products,
    alignment,
    angles,
    cosine_similarity,
    effective_rank,
    ratios,
    resolve_tolerance,
    singular_values,
)
from ._data import AbstractData
from ._effective import EffectiveModel, effective_model
from ._modules import ThreeLayer

Observable = Callable[[ThreeLayer, EffectiveModel | None], Array]
_NUM_SINGULAR = 4


def _condition(number: int, what: str) -> Callable[[State], Array]:
    def observe(state: State) -> Array:
        products = Products.of(state.unit_scale()[0])
        condition = CONDITIONS[number](products, resolve_tolerance(None, state.dtype))
        return jnp.asarray(getattr(condition, what))

    return observe


def _least_cosines(state: State) -> Array:
    found = angles(state)
    least = [jnp.min(x.reshape(state.rank, -1), axis=1) for x in (found.xi, found.psi, found.phi)]
    return jnp.stack([*least, found.zeta])


OF_STATE: dict[str, Callable[[State], Array]] = {
    "energy": energy,
    "norms": lambda state: jnp.sqrt(squared_norms(state)),
    **{
        f"{what}_{number}": _condition(number, what)
        for number in CONDITIONS
        for what in ("positive", "undecided", "margin")
    },
    "angles": _least_cosines,
    "ratios": ratios,
}
r"""Observables of the state of a network, by name.

- `energy` $E$; `norms` $(\|a\|, \|b\|_F, \|c\|)$.
- `positive_1`, `undecided_1`, `margin_1`, ..., `margin_3`: of the three final stage conditions.
- `angles`: least cosines of $\xi$, $\psi$, $\varphi$, and $\cos\zeta$, shape `(4, rank)`.
- `ratios`: $\|a'\|/\|c\|^2$ and $\|a'\|/\|a\|^2$, shape `(2, rank)`.
"""


def _alignment(network: ThreeLayer, model: EffectiveModel | None) -> Array:
    assert model is not None  # as `resolve_observables` has found out
    return jax.vmap(alignment, in_axes=(None, 0))(network.w1, model.right)


OF_NETWORK: dict[str, Callable[[ThreeLayer], Array]] = {
    "singular_values": lambda network: singular_values(network.product, _NUM_SINGULAR),
    "effective_rank": lambda network: effective_rank(network.product),
    "similarity": lambda network: cosine_similarity(network.w1),
}
"""Observables of the weights alone, by name.

- `singular_values`: the largest (up to four) of $W^3W^2W^1$; `effective_rank` of the same.
- `similarity`: cosines of all pairs of rows of $W^1$, shape `(q, q)`: large.
"""

ALIGNMENT = "alignment"
r"""Cosines of the rows of $W^1$ with each target direction, shape `(rank, q)`."""

NAMES = (*OF_STATE, *OF_NETWORK, ALIGNMENT)
DEFAULT = ("energy", "norms", "positive_1", "undecided_1", "singular_values")


def model_where_it_applies(
    network: ThreeLayer, data: AbstractData, factor: float
) -> EffectiveModel | None:
    """The effective model, or None where there is none: training goes on without it."""
    try:
        return effective_model(network, data, factor)
    except ValueError:
        return None


def resolve_observables(
    observe: Sequence[str] | Mapping[str, Observable] | None, model: EffectiveModel | None
) -> dict[str, Observable]:
    """The observables asked for, as functions of the network and its effective model.

    **Raises:** `ValueError` for names that are not known, and for those of the state where the
    effective model does not apply.
    """
    if observe is None:
        observe = DEFAULT if model is not None else tuple(OF_NETWORK)[:1]
    if isinstance(observe, str):
        raise ValueError(f"Argument `observe` must hold names, but is the string {observe!r}.")
    if isinstance(observe, Mapping):
        return dict(observe)
    return {name: _named(name, model) for name in observe}


def _named(name: str, model: EffectiveModel | None) -> Observable:
    if name not in NAMES:
        raise ValueError(
            f"Argument `observe` must hold names among {', '.join(NAMES)}, but has {name!r}."
        )
    if model is None and name not in OF_NETWORK:
        raise ValueError(
            f"Observable {name!r} is one of the effective model, which does not apply here."
        )
    return _BY_NAME[name]


def _of_state(function: Callable[[State], Array]) -> Observable:
    def observe(network: ThreeLayer, model: EffectiveModel | None) -> Array:
        assert model is not None  # as `resolve_observables` has found out
        return function(model.to_state(network))

    return observe


def _of_network(function: Callable[[ThreeLayer], Array]) -> Observable:
    return lambda network, model: function(network)


# Each is one object for good, so that programs compiled with it are found again.
_BY_NAME: dict[str, Observable] = {
    **{name: _of_state(function) for name, function in OF_STATE.items()},
    **{name: _of_network(function) for name, function in OF_NETWORK.items()},
    ALIGNMENT: _alignment,
}
