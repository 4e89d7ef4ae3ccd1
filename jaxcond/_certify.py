r"""Proven blow-up times, in ball arithmetic.

The entries of a state are exact numbers, so it has one blow-up time. `certify` encloses that time
by intervals that rounding cannot invalidate. It follows the flow in Taylor steps. Their
coefficients are balls, each an exact number with an error bound, and their remainders are bounded
as follows.

With $m$ the mean of the $L$ squared norms of the layers and $n_l$ one of them, along every ray
$t = s e^{i\varphi}$ in the complex plane $|n_l'| \le 2\Lambda\prod_l\sqrt{n_l} \le 2\Lambda
m^{L/2}$ with $\Lambda$ the spectral norm of the target, so that

$$m(s) \le m(0)\,(1 - s/\rho)^{-2/(L-2)}, \qquad \rho = \frac{m(0)^{1-L/2}}{(L-2)\Lambda} .$$

The flow is analytic for $|t| < \rho$, no entry exceeds $M = \sqrt{L\,m(\sigma\rho)}$ for $|t| \le
\sigma\rho$, and by Cauchy's estimate the terms beyond power $N$ of a step $h = q\sigma\rho$ add up
to at most $M q^{N+1}/(1-q)$. $T^*$ lies between $t + \rho$ and the upper bound of
`bracket` at every state on the way, and these bounds approach each other at the blow-up.
"""

import dataclasses
import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from ._chain import Chain
from ._exact import chain_rests, state_rests
from ._state import State

if TYPE_CHECKING:
    from flint import arb, arb_mat

# Radius of the disc of the majorant, and length of a step, as shares of the radius of analyticity.
_DISC, _STEP = 0.9, 0.25
_FEWEST_BITS, _MOST_BITS = 128, 1 << 14
# With fewer correct bits of the norms than this, the balls are too wide for another step.
_KNOWN_BITS = 16
_MOST_DIGITS = 1000


@dataclasses.dataclass(frozen=True)
class Certificate:
    """A proven enclosure of one blow-up time.

    - `lower`, `upper`: exact numbers between which $T^*$ lies. `upper` is `None` if no upper bound
      is proven, and both are `None` for a state that comes to rest.
    - `outcome`: `"blows up"`, `"comes to rest"`, or `"not decided"` within the steps allowed.
    - `num_steps`, `bits`: the total number of Taylor steps, and the precision of the last ones in
      bits.
    """

    lower: Fraction | None
    upper: Fraction | None
    outcome: str
    num_steps: int
    bits: int

    @property
    def time(self) -> float:
        """The double nearest to the centre of the enclosure; infinite at rest, else NaN."""
        if self.outcome == "comes to rest":
            return math.inf
        if self.lower is None or self.upper is None:
            return math.nan
        return float((self.lower + self.upper) / 2)

    @property
    def digits(self) -> int:
        """Proven decimal digits of $T^*$, by the width of the enclosure, at most 1000."""
        if self.lower is None or self.upper is None:
            return 0
        width, digits = self.upper - self.lower, 0
        while digits < _MOST_DIGITS and width * 10 ** (digits + 1) <= self.lower:
            digits += 1
        return digits

    def __contains__(self, time: float | Fraction) -> bool:
        """Whether the proof allows a time to be $T^*$."""
        if self.outcome == "comes to rest":
            return not isinstance(time, Fraction) and time == math.inf
        assert self.lower is not None
        if not isinstance(time, Fraction) and not math.isfinite(time):
            return self.upper is None and time == math.inf
        return self.lower <= Fraction(time) and (self.upper is None or Fraction(time) <= self.upper)

    def __str__(self) -> str:
        if self.outcome == "comes to rest":
            return "T* is infinite: proven, the state comes to rest"
        assert self.lower is not None
        if self.upper is None:
            return (
                f"T* > {_decimal(self.lower, 6, up=False)}: proven, the rest not decided within "
                f"{self.num_steps} steps"
            )
        digits = min(self.digits, 48) + 2
        low, high = _decimal(self.lower, digits, up=False), _decimal(self.upper, digits, up=True)
        return f"{low} <= T* <= {high}: proven, in {self.num_steps} steps of {self.bits} bits"


def _decimal(value: Fraction, digits: int, *, up: bool) -> str:
    """A positive number with `digits` digits, rounded up or down."""
    if value <= 0:
        return "0"
    exponent = math.floor(
        (math.log2(value.numerator) - math.log2(value.denominator)) * math.log10(2)
    )
    scaled = value * Fraction(10) ** (digits - 1 - exponent)
    whole = math.ceil(scaled) if up else math.floor(scaled)
    text = str(whole)
    exponent += len(text) - digits
    text = f"{text[0]}.{text[1:]}"
    if -5 < exponent < 16:
        point = exponent + 1
        plain = text.replace(".", "")
        plain = "0" * max(0, 1 - point) + plain + "0" * max(0, point - len(plain))
        point = max(point, 1)
        return plain[:point] + ("." + plain[point:] if plain[point:] else "")
    return f"{text}e{exponent:+d}"


def certify(state: State | Chain, *, digits: int = 12, max_steps: int = 20_000) -> Certificate:
    r"""Prove an enclosure of the blow-up time $T^*$ of one state or chain.

    **Arguments:**

    - `state`: one `State` of any rank, or one `Chain` of at least 3 layers; every entry counts as
      an exact number.
    - `digits`: decimal digits of $T^*$. The precision rises until the width of the enclosure is at
      most $10^{-\mathtt{digits}}\,T^*$.
    - `max_steps`: total number of Taylor steps, after which the outcome is `"not decided"`, with
      the bounds proven so far.

    **Returns:** a `Certificate`. Rest is proven in the cases of `comes_to_rest`, and for chains
    likewise. Other states that come to rest remain undecided, and so do states in which the
    component of largest strength does not dominate, since their bracket does not close.

    **Raises:** `ValueError` for a batch, for entries that are not finite, and for `digits` outside
    1 to 1000; `ImportError` where python-flint is missing.

    A state of width 30 takes a few seconds. Runs on the host.
    """
    if state.batch_shape:
        raise ValueError("Argument `state` must be one state, but is a batch.")
    if not isinstance(state, State) and state.depth < 3:
        raise ValueError("Argument `state` must have at least 3 layers: two never blow up.")
    if not 1 <= digits <= _MOST_DIGITS or max_steps < 1:
        raise ValueError(
            f"Arguments `digits` and `max_steps` must lie between 1 and 1000 and be positive, but "
            f"are {digits} and {max_steps}."
        )
    leaves = [*state.layers, state.strength if isinstance(state, State) else state.target]
    arrays = [np.asarray(x, np.float64) for x in leaves]
    if not all(np.all(np.isfinite(x)) for x in arrays):
        raise ValueError("Argument `state` holds NaN or infinite entries.")
    try:
        import flint
    except ImportError as error:
        raise ImportError(
            "`certify` needs python-flint: pip install 'jaxcond[certify]'."
        ) from error

    a_state = isinstance(state, State)
    *layers, target = arrays
    if (
        (a_state and state_rests(*arrays))
        or (not a_state and target.size == 1 and chain_rests(layers, float(target[0, 0])))
        or not np.any(target)
    ):
        return Certificate(lower=None, upper=None, outcome="comes to rest", num_steps=0, bits=0)
    best: list[Any] = [Fraction(0), None]
    num_steps, bits = 0, _FEWEST_BITS + 4 * digits
    while True:
        with flint.ctx.workprec(bits):
            flow = _ThreeLayers(*arrays) if a_state else _Chain(layers, target)
            run, narrow = _follow(flow, digits, bits, max_steps - num_steps, best)
        num_steps += run
        if narrow:
            return Certificate(
                lower=best[0], upper=best[1], outcome="blows up", num_steps=num_steps, bits=bits
            )
        if num_steps >= max_steps or bits >= _MOST_BITS:
            return Certificate(
                lower=best[0], upper=best[1], outcome="not decided", num_steps=num_steps, bits=bits
            )
        bits *= 2


class _Flow:
    """The Taylor coefficients of a flow at the current point, as balls.

    - `depth`: the number of layers $L$.
    """

    depth: int

    def mean(self) -> "arb":
        """The mean of the squared norms of the layers."""
        raise NotImplementedError

    def strength(self) -> "arb":
        r"""$\\Lambda$."""
        raise NotImplementedError

    def above(self) -> "arb | None":
        """An upper bound on the time left, if the energy is certainly positive."""
        raise NotImplementedError

    def step(self, length: "arb", order: int, entries: "arb", slopes: "arb") -> None:
        """Move on, with bounds on the remainders of entries and of their first derivatives."""
        raise NotImplementedError


def _follow(
    flow: _Flow, digits: int, bits: int, max_steps: int, best: list[Any]
) -> tuple[int, bool]:
    """Take steps until the enclosure in `best` is narrow enough or the balls are too wide."""
    from flint import arb

    ratio = _STEP / _DISC
    order = math.ceil(bits / -math.log2(ratio))
    elapsed, power = Fraction(0), flow.depth - 2
    for count in range(max_steps):
        mean = flow.mean()
        if not mean > 0 or mean.rel_accuracy_bits() < _KNOWN_BITS:
            return count, False
        radius = _below(_radius(mean, flow))
        best[0] = max(best[0], elapsed + radius)
        above = flow.above()
        if above is not None and above.is_finite():
            upper = elapsed + _exact(above.upper())
            best[1] = upper if best[1] is None else min(best[1], upper)
            if best[1] - best[0] <= best[0] / 10**digits:
                return count, True
        length = Fraction(_STEP) * _short(radius)
        # Up to rounding of the two shares.
        step, q = _ball(length), arb(ratio) * (1 + arb(2) ** -40)
        # The step is at most `_STEP` of the radius, so that `ratio` is at least its share.
        majorant = (flow.depth * mean).sqrt().upper() * arb(1 - _DISC) ** (arb(-1) / power)
        beyond = majorant * q ** (order + 1) / (1 - q)
        slopes = majorant / step * q ** (order + 1) * (order + 1 + 1 / (1 - q)) / (1 - q)
        flow.step(step, order, beyond.upper(), slopes.upper())
        elapsed += length
    return max_steps, False


def _radius(mean: "arb", flow: _Flow) -> "arb":
    power = flow.depth - 2
    root = mean.sqrt() ** power
    return 1 / (root * power * flow.strength())


def _exact(value: "arb") -> Fraction:
    """The exact value of a ball without radius."""
    mantissa, exponent = value.mid().man_exp()
    return Fraction(int(mantissa)) * Fraction(2) ** int(exponent)


def _below(value: "arb") -> Fraction:
    return _exact(value.lower())


def _short(value: Fraction) -> Fraction:
    """A number of few bits just below a positive ball."""
    exponent = value.numerator.bit_length() - value.denominator.bit_length() - 24
    unit = Fraction(2) ** exponent
    return math.floor(value / unit) * unit


def _ball(value: Fraction | float) -> "arb":
    """A fraction whose denominator is a power of two, as a ball without radius."""
    from flint import arb, fmpz

    fraction = Fraction(value)
    exponent = fraction.denominator.bit_length() - 1
    return arb(fmpz(fraction.numerator)) * arb(2) ** (-exponent)


def _matrix(array: np.ndarray) -> "arb_mat":
    from flint import arb_mat

    rows, columns = array.shape
    return arb_mat(rows, columns, [_ball(float(x)) for x in array.flat])


def _squares(matrix: "arb_mat") -> "arb":
    """The squared Frobenius norm."""
    from flint import arb

    return sum((x * x for x in matrix.entries()), arb(0))


def _sum(terms: list["arb_mat"], rows: int, columns: int) -> "arb_mat":
    from flint import arb_mat

    total = arb_mat(rows, columns)
    for term in terms:
        total = total + term
    return total


def _horner(coefficients: list["arb_mat"], step: "arb", beyond: "arb") -> "arb_mat":
    """The value of a polynomial, with a bound on the remainder in every entry."""
    from flint import arb, arb_mat

    value = coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        value = value * step + coefficient
    wide = arb(0, beyond)
    rows, columns = value.nrows(), value.ncols()
    return arb_mat(rows, columns, [x + wide for x in value.entries()])


class _ThreeLayers(_Flow):
    r"""A state of any rank, without $b$: with $Y = a^T$, $Z = c^T$, $S = \mathrm{diag}(\lambda)$,

    $$Y'' = Y S(Z^TZ)S + (A + YY^T)Y S^2, \qquad A = bb^T - YY^T \text{ conserved,}$$

    and likewise for $Z$ with $C = b^Tb - ZZ^T$. At rank 1 the smaller of $Y$ and $Z$ suffices, as
    $\|c\|^2 - \|a\|^2$ is conserved.
    """

    depth = 3

    def __init__(self, a: np.ndarray, b: np.ndarray, c: np.ndarray, strength: np.ndarray):
        from flint import arb, arb_mat

        if strength.size == 1 and b.shape[0] > b.shape[1]:
            a, b, c = c, b.T, a
        rank = strength.size
        left, middle, right = _matrix(a.T), _matrix(b), _matrix(c.T)
        weights = [_ball(float(x)) for x in strength]
        self.scaling = arb_mat(
            rank, rank, [weights[i] if i == j else arb(0) for i in range(rank) for j in range(rank)]
        )
        self.single = rank == 1
        self.strongest = _ball(float(np.max(np.abs(strength))))
        sides = [(left, middle, right), (right, middle.transpose(), left)]
        self.points = [near for near, _, _ in sides]
        self.slopes = [onto * far * self.scaling for _, onto, far in sides]
        self.conserved = [
            onto * onto.transpose() - near * near.transpose() for near, onto, _ in sides
        ]
        self.excess = _squares(right) - _squares(left)  # of c over a, at rank 1
        self.middle = _squares(middle) - _squares(left)
        if self.single:
            self.points, self.slopes = self.points[:1], self.slopes[:1]

    def _norms(self) -> tuple["arb", "arb", "arb"]:
        first = _squares(self.points[0])
        second = first + self.excess if self.single else _squares(self.points[1])
        return first, first + self.middle, second

    def mean(self) -> "arb":
        return sum(self._norms()[1:], self._norms()[0]) / 3

    def strength(self) -> "arb":
        return self.strongest

    def above(self) -> "arb | None":
        # The energy is the sum of a_i . a_i'.
        energy = (self.points[0].transpose() * self.slopes[0]).trace()
        if not energy > 0:
            return None
        if self.single:
            unit = energy / self.strongest
            return 1 / (unit.root(3) * self.strongest)
        return 3 * self.mean() / (3 * energy)

    def step(self, length: "arb", order: int, entries: "arb", slopes: "arb") -> None:
        from flint import arb

        scaling, rank = self.scaling, self.scaling.nrows()
        series = [[point, slope] for point, slope in zip(self.points, self.slopes, strict=True)]
        transposed = [[x.transpose() for x in side] for side in series]
        weights: list[list[Any]] = [[] for _ in series]
        for n in range(order - 1):
            grams = [
                _sum([across[j] * side[n - j] for j in range(n + 1)], rank, rank)
                for side, across in zip(series, transposed, strict=True)
            ]
            other = [grams[1 - i] for i in range(2)] if not self.single else [grams[0]]
            if self.single and n == 0:
                other[0] = other[0] + _one_by_one(self.excess)
            factor = arb(1) / ((n + 1) * (n + 2))
            new = []
            for i, side in enumerate(series):
                weights[i].append(scaling * other[i] * scaling + grams[i] * scaling * scaling)
                pull = _sum(
                    [side[j] * weights[i][n - j] for j in range(n + 1)], side[0].nrows(), rank
                )
                new.append((pull + self.conserved[i] * side[n] * scaling * scaling) * factor)
            for side, across, coefficient in zip(series, transposed, new, strict=True):
                side.append(coefficient)
                across.append(coefficient.transpose())
        self.points = [_horner(side, length, entries) for side in series]
        derivatives = [[x * n for n, x in enumerate(side) if n] for side in series]
        self.slopes = [_horner(side, length, slopes) for side in derivatives]


def _one_by_one(value: "arb") -> "arb_mat":
    from flint import arb_mat

    return arb_mat(1, 1, [value])


class _Chain(_Flow):
    """Any number of layers, next to the input first, and a target."""

    def __init__(self, layers: list[np.ndarray], target: np.ndarray):
        self.depth = len(layers)
        self.layers = [_matrix(layer) for layer in layers]
        self.target = _matrix(target)
        diagonal = np.count_nonzero(target) == np.count_nonzero(np.diagonal(target))
        if diagonal:
            self.norm = _ball(float(np.max(np.abs(target))))
        else:  # an upper bound
            self.norm = _squares(self.target).sqrt().upper()

    def mean(self) -> "arb":
        squares = [_squares(layer) for layer in self.layers]
        return sum(squares[1:], squares[0]) / self.depth

    def strength(self) -> "arb":
        return self.norm

    def above(self) -> "arb | None":
        product = self.layers[0]
        for layer in self.layers[1:]:
            product = layer * product
        energy = (self.target.transpose() * product).trace()
        if not energy > 0:
            return None
        return self.mean() / ((self.depth - 2) * energy)

    def step(self, length: "arb", order: int, entries: "arb", slopes: "arb") -> None:
        from flint import arb, arb_mat

        del slopes
        depth, inputs = self.depth, self.layers[0].ncols()
        series = [[layer] for layer in self.layers]
        flipped = [[layer.transpose()] for layer in self.layers]
        identity = arb_mat(
            inputs, inputs, [int(i == j) for i in range(inputs) for j in range(inputs)]
        )
        # W_l ... W_1, and W_{l+1}^T ... W_L^T V.
        forward: list[list[Any]] = [[] for _ in range(depth + 1)]
        backward: list[list[Any]] = [[] for _ in range(depth + 1)]
        across: list[list[Any]] = [[] for _ in range(depth + 1)]

        def convolved(x: list[Any], y: list[Any], n: int, rows: int, columns: int) -> Any:
            terms = [x[j] * y[n - j] for j in range(n + 1) if n - j < len(y)]
            return _sum(terms, rows, columns)

        for n in range(order):
            forward[0].append(identity if n == 0 else arb_mat(inputs, inputs))
            backward[depth].append(self.target if n == 0 else arb_mat(self.target.nrows(), inputs))
            for i in range(1, depth + 1):
                rows = self.layers[i - 1].nrows()
                forward[i].append(convolved(series[i - 1], forward[i - 1], n, rows, inputs))
            for i in range(depth - 1, -1, -1):
                rows = self.layers[i].ncols()
                backward[i].append(convolved(flipped[i], backward[i + 1], n, rows, inputs))
            for i in range(depth + 1):
                across[i].append(forward[i][n].transpose())
            factor = arb(1) / (n + 1)
            for i, layer in enumerate(self.layers):
                rows, columns = layer.nrows(), layer.ncols()
                new = convolved(backward[i + 1], across[i], n, rows, columns) * factor
                series[i].append(new)
                flipped[i].append(new.transpose())
        self.layers = [_horner(side, length, entries) for side in series]
