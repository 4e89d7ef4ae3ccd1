"""The quantity of a study: the number per sample that summaries and figures describe."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .._status import AbstractStatus
from ..blowup import Status, is_known
from ..networks import EscapeStatus


@dataclass(frozen=True)
class Quantity:
    r"""A variable of the store, with its names in texts, tables and figures.

    - `field`, `status_field`: names of the variable and of its status in the store.
    - `statuses`: meaning of the status codes.
    - `is_known`: maps values and statuses to a mask of the samples that statistics use.
    - `title`, `symbol`: name in words and in tables.
    - `subject`, `complete`: first words of a summary, and its sentence if every sample has a value.
    - `rescaled`: the symbol times `Settings.rescaling`, of order one at any width; `tex`: the same
      in figures, with its name in `label`.
    """

    field: str
    status_field: str
    statuses: type[AbstractStatus]
    is_known: Callable[[Any, Any], Any]
    title: str
    symbol: str
    subject: str
    complete: str
    rescaled: str
    tex: str
    label: str


def _blowup(networks: str, rescaled: str, tex: str) -> Quantity:
    return Quantity(
        field="blowup_time",
        status_field="status",
        statuses=Status,
        is_known=is_known,
        title="Blow-up time T*",
        symbol="T*",
        subject=f"Blow-up times T* of the effective dynamics of {networks}",
        complete="Every sample has a blow-up time and a bracket.",
        rescaled=rescaled,
        tex=tex,
        label=f"rescaled blow-up time {tex}",
    )


BLOWUP = _blowup("three-layer networks", "√q·T*", r"$\sqrt{q}\,T^*$")
CHAIN_BLOWUP = _blowup("networks of several layers", "m^(L/2-1)·T*", r"$m^{L/2-1}\,T^*$")
ESCAPE = Quantity(
    field="crossing",
    status_field="escape_status",
    statuses=EscapeStatus,
    is_known=lambda values, status: status == EscapeStatus.PREDICTED,
    title="Iteration at which the plateau ends",
    symbol="iteration",
    subject="Iterations at which gradient descent leaves its plateau, as predicted,",
    complete="Every network has a prediction.",
    rescaled="iteration",
    tex="iteration at which the plateau ends",
    label="iteration at which the plateau ends",
)
