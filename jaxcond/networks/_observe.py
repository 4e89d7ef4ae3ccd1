r"""Observables of a network in training: the indicators of its `State`, and a few more.

The indicators take the `State` of the effective dynamics, so that training and simulation share
their code.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._chain import Chain
from .._energy import energy
from .._state import State
from ..indicators import (
    CONDITIONS,
    Products,
    alignment,
    angles,
    cosine_similarity,
    effective_rank,
    nuclear_norm,
    ratios,
    resolve_tolerance,
    singular_values,
)
from ._data import AbstractData
from ._effective import EffectiveModel, effective_model
from ._losses import Loss
from ._modules import MLP

Observable = Callable[[MLP, EffectiveModel | None], Array]
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


def _norms(point: State | Chain) -> Array:
    return jnp.stack([jnp.linalg.norm(layer) for layer in point.layers])


OF_STATE: dict[str, Callable[[Any], Array]] = {
    "energy": energy,
    "norms": _norms,
    **{
        f"{what}_{number}": _condition(number, what)
        for number in CONDITIONS
        for what in ("positive", "undecided", "margin")
    },
    "angles": _least_cosines,
    "ratios": ratios,
}
r"""Observables of the state of a network, by name.

- `energy` $E$; `norms` $(\|a\|, \|b\|_F, \|c\|)$, of other depths than three those of the layers
  of the `Chain`, the one next to the input first.
- `positive_1`, `undecided_1`, `margin_1`, ..., `margin_3`: of the three final stage conditions.
- `angles`: least cosines of $\xi$, $\psi$, $\varphi$, and $\cos\zeta$, shape `(4, rank)`.
- `ratios`: $\|a'\|/\|c\|^2$ and $\|a'\|/\|a\|^2$, shape `(2, rank)`.
"""


OF_ANY_DEPTH = ("energy", "norms")
"""Those of the observables of the state that networks of any depth have."""


def _alignment(network: MLP, model: EffectiveModel | None) -> Array:
    assert model is not None  # as `resolve_observables` has found out
    return jax.vmap(alignment, in_axes=(None, 0))(network.weights[0], model.right)


OF_NETWORK: dict[str, Callable[[MLP], Array]] = {
    "singular_values": lambda network: singular_values(network.product, _NUM_SINGULAR),
    "effective_rank": lambda network: effective_rank(network.product),
    "nuclear_norm": lambda network: nuclear_norm(network.product),
    "similarity": lambda network: cosine_similarity(network.weights[0]),
}
r"""Observables of the weights alone, by name.

- `singular_values`: the largest (up to four) of $W_L\cdots W_1$; `effective_rank` and
  `nuclear_norm` of the same.
- `similarity`: cosines of all pairs of rows of $W_1$, shape `(q, q)`: large.
"""

ALIGNMENT = "alignment"
r"""Cosines of the rows of $W_1$ with each target direction, shape `(rank, q)`."""

NAMES = (*OF_STATE, *OF_NETWORK, ALIGNMENT)
DEFAULT = ("energy", "norms", "positive_1", "undecided_1", "singular_values")


def model_where_it_applies(network: MLP, data: AbstractData, loss: Loss) -> EffectiveModel | None:
    """The effective model, or `None` if there is none; training does not need it."""
    try:
        return effective_model(network, data, loss)
    except ValueError:
        return None


def resolve_observables(
    observe: Sequence[str] | Mapping[str, Observable] | None,
    network: MLP,
    model: EffectiveModel | None,
) -> dict[str, Observable]:
    """The requested observables, as functions of the network and its effective model.

    **Raises:** `ValueError` for unknown names, for observables of the state if the effective model
    does not apply, and for observables of three layers if the network has another depth.
    """
    if observe is None:
        names = DEFAULT if network.depth == 3 else (*OF_ANY_DEPTH, "singular_values")
        observe = names if model is not None else tuple(OF_NETWORK)[:1]
    if isinstance(observe, str):
        raise ValueError(f"Argument `observe` must hold names, but is the string {observe!r}.")
    if isinstance(observe, Mapping):
        return dict(observe)
    return {name: _named(name, network, model) for name in observe}


def _named(name: str, network: MLP, model: EffectiveModel | None) -> Observable:
    if name not in NAMES:
        raise ValueError(
            f"Argument `observe` must hold names among {', '.join(NAMES)}, but has {name!r}."
        )
    if model is None and name not in OF_NETWORK:
        raise ValueError(
            f"Observable {name!r} is one of the effective model, which does not apply here."
        )
    if name in OF_STATE and name not in OF_ANY_DEPTH and network.depth != 3:
        raise ValueError(
            f"Observable {name!r} is one of three layers, but the network has {network.depth}."
        )
    return _BY_NAME[name]


def _of_state(function: Callable[[Any], Array]) -> Observable:
    def observe(network: MLP, model: EffectiveModel | None) -> Array:
        assert model is not None  # as `resolve_observables` has found out
        return function(model.to_state(network))

    return observe


def _of_network(function: Callable[[MLP], Array]) -> Observable:
    return lambda network, model: function(network)


# One object per name, so that the jit cache is hit.
_BY_NAME: dict[str, Observable] = {
    **{name: _of_state(function) for name, function in OF_STATE.items()},
    **{name: _of_network(function) for name, function in OF_NETWORK.items()},
    ALIGNMENT: _alignment,
}
