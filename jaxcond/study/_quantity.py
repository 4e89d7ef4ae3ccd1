"""What a study is about: the number of each sample whose law is summarised and drawn."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..blowup import is_known


@dataclass(frozen=True)
class Quantity:
    r"""A variable of the store, and how it is told of.

    - `field`: its name in the store.
    - `is_known`: of its values and the variable `status`, which samples have one.
    - `title`, `symbol`: what it is, in words and in tables; `tex`: in figures.
    - `rescaled`, `rescaled_tex`: the same times `Settings.rescaling`, of order one at any width.
    """

    field: str
    is_known: Callable[[Any, Any], Any]
    title: str
    symbol: str
    tex: str
    rescaled: str
    rescaled_tex: str


BLOWUP = Quantity(
    field="blowup_time",
    is_known=is_known,
    title="Blow-up time T*",
    symbol="T*",
    tex="T^*",
    rescaled="√q·T*",
    rescaled_tex=r"\sqrt{q}\,T^*",
)
CHAIN_BLOWUP = Quantity(
    field="blowup_time",
    is_known=is_known,
    title="Blow-up time T*",
    symbol="T*",
    tex="T^*",
    rescaled="m^(L/2-1)·T*",
    rescaled_tex=r"m^{L/2-1}\,T^*",
)
