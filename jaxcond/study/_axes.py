"""The ensemble keys that a study can sweep; a new key needs one row in this table only."""

import math
from dataclasses import dataclass
from typing import Any

from ._checks import choice, real, text, whole


@dataclass(frozen=True)
class Axis:
    """An ensemble key with one value, which a study can sweep.

    - `type`: `int`, `float` or `str`; `least`, `most`: its range; `strict`: whether the range
      excludes `least` itself; `words`: the allowed words of a text key; empty allows any text.
    - `help`: description in the store and in tables; `label`: axis label of figures; `symbol`:
      symbol in formulas of figures.
    """

    type: type
    help: str
    label: str
    symbol: str
    least: int | float = 0
    most: int | float = math.inf
    strict: bool = False
    words: tuple[str, ...] = ()

    def check(self, key: str, value: Any) -> Any:
        """The value in the type of the key: 200.0 becomes the width 200.

        **Raises:** `ValueError` that names the key.
        """
        if self.type is str and self.words:
            return choice(key, value, self.words)
        if self.type is str:
            return text(key, value)
        if self.type is int:
            most = None if self.most == math.inf else int(self.most)
            return whole(key, value, int(self.least), most)
        return real(key, value, float(self.least), float(self.most), strict=self.strict)


_WIDTH: dict[str, Any] = {"type": int, "least": 1, "most": 10**18}
_SCALE: dict[str, Any] = {"type": float}

AXES: dict[str, Axis] = {
    "kind": Axis(
        type=str,
        help="ensemble of initial states",
        label="ensemble",
        symbol="ensemble",
        words=(
            "gaussian",
            "uniform",
            "orthogonal",
            "balanced",
            "low_rank",
            "chain",
            "escape",
            "function",
            "file",
        ),
    ),
    "width": Axis(**_WIDTH, help="width of all hidden layers", label="width $m$", symbol="$m$"),
    "aspect": Axis(
        type=float,
        strict=True,
        help="ratio p/q of the widths",
        label=r"aspect ratio $p/q$",
        symbol="$p/q$",
    ),
    "p": Axis(
        **_WIDTH,
        help="width of the layer next to the output",
        label="width $p$",
        symbol="$p$",
    ),
    "q": Axis(
        **_WIDTH, help="width of the layer next to the input", label="width $q$", symbol="$q$"
    ),
    "depth": Axis(
        type=int,
        least=2,
        most=64,
        help="number of layers of a chain or a network",
        label="number of layers $L$",
        symbol="$L$",
    ),
    "scale": Axis(
        **_SCALE,
        help="standard deviation of the entries of all layers",
        label="scale of all layers",
        symbol="$s$",
    ),
    "scale_a": Axis(
        **_SCALE,
        help="standard deviation of the entries of a (output)",
        label="scale $s_a$ of the output layer",
        symbol="$s_a$",
    ),
    "scale_b": Axis(
        **_SCALE,
        help="standard deviation of the entries of b",
        label="scale $s_b$ of the middle layer",
        symbol="$s_b$",
    ),
    "scale_c": Axis(
        **_SCALE,
        help="standard deviation of the entries of c (input)",
        label="scale $s_c$ of the input layer",
        symbol="$s_c$",
    ),
    "rank": Axis(
        type=int, least=1, help="rank of the signal in b", label="rank of the signal", symbol="$r$"
    ),
    "noise": Axis(
        type=float,
        most=1,
        help="share of noise in b",
        label=r"share of noise $\eta$",
        symbol=r"$\eta$",
    ),
    "data": Axis(type=str, help="file of the samples to train on", label="data", symbol="data"),
    "std": Axis(
        type=float,
        strict=True,
        help="standard deviation of the initial weights",
        label=r"standard deviation $\varepsilon$ of the weights",
        symbol=r"$\varepsilon$",
    ),
    "exponent": Axis(
        type=float,
        help="exponent gamma of the standard deviation m^-gamma of the initial weights",
        label=r"exponent $\gamma$, $\varepsilon = m^{-\gamma}$",
        symbol=r"$\gamma$",
    ),
    "loss": Axis(
        type=str,
        words=("half_mse", "mse", "softmax", "logistic"),
        help="loss of training",
        label="loss",
        symbol="loss",
    ),
    "learning_rate": Axis(
        type=float,
        strict=True,
        help="learning rate of gradient descent",
        label=r"learning rate $\eta$",
        symbol=r"$\eta$",
    ),
}
