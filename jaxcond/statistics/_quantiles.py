r"""Exact sample quantiles of data larger than memory, with exact intervals.

The quantile of level $\alpha$ of $n$ samples is the linear interpolation of the order statistics
$x_{(1)} \le \dots \le x_{(n)}$ at the position $1 + (n-1)\alpha$, as `numpy.quantile` defines it.

Order statistics are found by passes over the data. Floats keep their order when their bits are read
as integers, so a histogram of the leading bits of these says which bin holds a rank; the next pass
divides that bin, until the members of all bins needed fit in memory or have one common value. Ties
and outliers cost nothing: a bin loses bits at every pass, and there are 64 of them.

The number of samples up to the quantile $\xi$ of the law is binomial, so that order statistics
bound it whatever the law is:

$$P(x_{(l)} \le \xi \le x_{(u)}) \ge P(l \le B < u), \qquad B \sim \mathrm{Bin}(n, \alpha).$$

Equal for continuous laws. Each tail has a probability of at most $(1-c)/2$; where no sample lies
far enough out for that, the end is infinite.

Source: H. A. David and H. N. Nagaraja, *Order Statistics*, 3rd ed. (2003), section 7.1.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import binom

from ._moments import as_samples, check_level, student

_BLOCK = 1 << 20
# Bins of one cell, and of all cells of a pass together.
_BITS = 16
_ALL_BITS = 18
_SIGN = 1 << 63


@dataclass(frozen=True)
class Quantile:
    """A sample quantile: its `level` and `value`, and limits `lower` and `upper`.

    A limit is infinite if too few samples bound the quantile on that side.
    """

    level: float
    value: float
    lower: float
    upper: float


class _Cell(NamedTuple):
    """Keys from `low` to `high`: `below` values lie under them and `size` among them."""

    low: int
    high: int
    below: int
    size: int


def quantiles(
    chunks: Callable[[], Iterable[np.ndarray]],
    levels: Sequence[float | int] | np.ndarray,
    confidence: float = 0.95,
    *,
    capacity: int = 1 << 21,
) -> tuple[Quantile, ...]:
    r"""Quantiles of all values of all chunks, with intervals of order statistics.

    **Arguments:**

    - `chunks`: called once for each pass, gives arrays of any shape and real dtype; the same values
      each time, in any order.
    - `levels`: between 0 and 1, in any order.
    - `confidence`: of the intervals for independent samples of any law: they cover with at least
      this probability, and are infinite on a side that has too few samples.
    - `capacity`: how many values may be held at once. Data of no more than these are loaded; larger
      data take three or four passes as a rule.

    **Returns:** a `Quantile` per level, NaN when there are no values.

    **Raises:** `ValueError` for arguments out of range, values that are not finite, and values that
    change from pass to pass.
    """
    check_level(confidence, "confidence")
    levels = [float(level) for level in levels]
    for level in levels:
        if not 0 <= level <= 1:
            raise ValueError(f"Argument `levels` must be between 0 and 1, but one is {level}.")
    if capacity < 1:
        raise ValueError(f"Argument `capacity` must be positive, but is {capacity}.")
    whole, held = _survey(chunks, capacity)
    if whole.size == 0:
        return tuple(Quantile(level, math.nan, math.nan, math.nan) for level in levels)
    n = whole.size
    limits = [_limit_ranks(n, level, confidence) for level in levels]
    neighbours = [_neighbours(n, level) for level in levels]
    ranks = sorted(
        {r for pair in limits for r in pair if 0 <= r < n}
        | {r for a, b, _ in neighbours for r in (a, b)}
    )
    if held is None:
        found = _select(chunks, whole, ranks, capacity)
    else:
        found = dict(zip(ranks, np.sort(held)[ranks].tolist(), strict=True))
    found |= {-1: -math.inf, n: math.inf}
    return tuple(
        Quantile(level, _between(found[a], found[b], t), found[lower], found[upper])
        for level, (a, b, t), (lower, upper) in zip(levels, neighbours, limits, strict=True)
    )


def _neighbours(count: int, level: float) -> tuple[int, int, float]:
    """The two ranks, from 0, that enclose a quantile, and its position between them."""
    position = (count - 1) * level
    rank = math.floor(position)
    return rank, min(rank + 1, count - 1), position - rank


def _between(a: float, b: float, t: float) -> float:
    """Linear interpolation, rounded as NumPy does."""
    return a + (b - a) * t if t < 0.5 else b - (b - a) * (1 - t)


def _limit_ranks(count: int, level: float, confidence: float) -> tuple[int, int]:
    """The ranks, from 0, of the limits; -1 and `count` stand for infinite ones."""
    tail = (1 - confidence) / 2
    lower, upper = binom.ppf(tail, count, level) - 1, binom.isf(tail, count, level)
    return int(lower), int(upper)


def replicated_limits(
    replicates: Sequence[np.ndarray], level: float, confidence: float
) -> tuple[float, float]:
    r"""Limits of a quantile from independent replicates of dependent samples, as of nets.

    In replicate $r$, the part $F_r(x)$ of the samples up to $x$ has the mean $F(x)$ exactly, while
    a quantile of few samples is biased. The limits enclose all $x$ with

    $$|\bar F(x) - \alpha| \le t_{R-1}\,\frac{s(F_r(x))}{\sqrt R} + \frac1m,$$

    $m$ the size of the smallest replicate: $F_r$ moves in steps of $1/m$, so that the replicates
    may agree by chance, with a spread of zero, at a distance of up to one step from $F$.

    **Arguments:** `replicates`, the samples of each, none of them empty; `level` of the quantile;
    `confidence` of the interval.

    **Returns:** lower and upper limit, infinite where the samples do not bound the quantile; NaN
    for fewer than two replicates.
    """
    number = len(replicates)
    if number < 2:
        return math.nan, math.nan
    values = np.sort(np.concatenate(replicates))
    total = np.zeros(values.size + 1)
    squares = np.zeros(values.size + 1)
    for part in replicates:
        # Deviations from the level, which do not cancel in the squares. The first is below all.
        share = np.searchsorted(np.sort(part), values, side="right") / part.size - level
        share = np.concatenate([[-level], share])
        total += share
        squares += share**2
    mean = total / number
    spread = np.sqrt(np.maximum(squares - number * mean**2, 0.0) / (number - 1) / number)
    half = student(number - 1, confidence) * spread + 1 / min(map(len, replicates))
    held = np.flatnonzero(np.abs(mean) <= half)
    ends = np.concatenate([[-math.inf], values, [math.inf]])
    return float(ends[held[0]]), float(ends[held[-1] + 1])


def _select(
    chunks: Callable[[], Iterable[np.ndarray]], whole: _Cell, ranks: list[int], capacity: int
) -> dict[int, float]:
    """The order statistics of these ranks, from 0."""
    cells = [whole]
    while sum(cell.size for cell in cells if cell.low < cell.high) > capacity:
        cells = _divide(chunks, cells, ranks)
    wide = [cell for cell in cells if cell.low < cell.high]
    values = np.concatenate([np.empty(0), *(block for block, *_ in _inside(chunks, wide))])
    values.sort()
    if values.size != sum(cell.size for cell in wide):
        raise _changed()
    found, start = {}, 0
    for cell in cells:
        for rank in (r for r in ranks if 0 <= r - cell.below < cell.size):
            single = cell.low == cell.high
            found[rank] = _value(cell.low) if single else float(values[start + rank - cell.below])
        start += cell.size if cell.low < cell.high else 0
    return found


def _divide(
    chunks: Callable[[], Iterable[np.ndarray]], cells: list[_Cell], ranks: list[int]
) -> list[_Cell]:
    """The parts of the cells that contain ranks, smaller by a factor of at least 2."""
    wide = [cell for cell in cells if cell.low < cell.high]
    bits = min(_BITS, max(1, _ALL_BITS - len(wide).bit_length()))
    shifts = [max(0, (cell.high - cell.low).bit_length() - bits) for cell in wide]
    counts = np.zeros(len(wide) << bits, np.int64)
    for _, place, offset in _inside(chunks, wide):
        bins = (offset >> np.array(shifts, np.uint64)[place]).astype(np.int64)
        counts += np.bincount((place << bits) + bins, minlength=counts.size)
    parts = [cell for cell in cells if cell.low == cell.high]
    for cell, shift, row in zip(wide, shifts, counts.reshape(len(wide), -1), strict=True):
        if row.sum() != cell.size:
            raise _changed()
        ends = cell.below + np.cumsum(row)
        needed = [r for r in ranks if 0 <= r - cell.below < cell.size]
        for i in np.unique(np.searchsorted(ends, needed, side="right")).tolist():
            low = cell.low + (i << shift)
            high = min(cell.high, low + (1 << shift) - 1)
            parts.append(_Cell(low, high, int(ends[i] - row[i]), int(row[i])))
    return sorted(parts)


def _inside(
    chunks: Callable[[], Iterable[np.ndarray]], cells: list[_Cell]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The values inside the cells, with the index of the cell and the offset of the key in it."""
    if not cells:
        return
    lows = np.array([cell.low for cell in cells], np.uint64)
    highs = np.array([cell.high for cell in cells], np.uint64)
    for block in _blocks(chunks):
        keys = _keys(block)
        place = np.searchsorted(lows, keys, side="right") - 1
        inside = (place >= 0) & (keys <= highs[place])
        place = place[inside]
        yield block[inside], place, keys[inside] - lows[place]


def _survey(
    chunks: Callable[[], Iterable[np.ndarray]], capacity: int
) -> tuple[_Cell, np.ndarray | None]:
    """One cell with all values, and the values themselves if they are few enough."""
    count, least, greatest = 0, math.inf, -math.inf
    held: list[np.ndarray] = []
    for block in _blocks(chunks):
        count += block.size
        least, greatest = min(least, float(block.min())), max(greatest, float(block.max()))
        if count <= capacity:
            held.append(block)
        else:
            held.clear()
    low, high = _keys(np.array([least, greatest])).tolist()
    return _Cell(low, high, 0, count), None if count > capacity else np.concatenate([[], *held])


def _blocks(chunks: Callable[[], Iterable[np.ndarray]]) -> Iterator[np.ndarray]:
    for chunk in chunks():
        flat = np.asarray(chunk).reshape(-1)
        for first in range(0, flat.size, _BLOCK):
            # The sum turns a negative zero into a positive one, so that keys differ as values do.
            yield as_samples(flat[first : first + _BLOCK], "chunks") + 0.0


def _keys(values: np.ndarray) -> np.ndarray:
    """Integers in the order of the values: the bits, all of them flipped for negative values."""
    bits = values.view(np.uint64)
    return np.where(values < 0, ~bits, bits | np.uint64(_SIGN))


def _value(key: int) -> float:
    """The value of a key."""
    bits = key ^ _SIGN if key & _SIGN else key ^ (2 * _SIGN - 1)
    return float(np.array([bits], np.uint64).view(np.float64)[0])


def _changed() -> ValueError:
    return ValueError(
        "Argument `chunks` must give the same values each time it is called, but their number "
        "changed from one pass to the next."
    )
