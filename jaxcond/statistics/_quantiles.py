r"""Exact sample quantiles of data larger than memory, with exact bootstrap intervals.

The quantile of level $\alpha$ of $n$ samples is the linear interpolation of the order statistics
$x_{(1)} \le \dots \le x_{(n)}$ at the position $1 + (n-1)\alpha$, as `numpy.quantile` defines it.

Order statistics are found by passes over the data. Floats keep their order when their bits are read
as integers, so a histogram of the leading bits of these says which bin holds a rank; the next pass
divides that bin, until the members of all bins needed fit in memory or have one common value. Ties
and outliers cost nothing: a bin loses bits at every pass, and there are 64 of them.

The bootstrap distribution of an order statistic needs no resampling, as its law is

$$P(X^*_{(r)} \le x_{(k)}) = I_{k/n}(r,\; n - r + 1).$$

Source: A. D. Hutson and M. D. Ernst, *The exact bootstrap mean and variance of an L-estimator*,
J. R. Stat. Soc. B 62 (2000) 89-94, eq. (2.1).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import betaincinv

from ._moments import as_samples, check_level

_BLOCK = 1 << 20
# Bins of one cell, and of all cells of a pass together.
_BITS = 16
_ALL_BITS = 18
_SIGN = 1 << 63


@dataclass(frozen=True)
class Quantile:
    """A sample quantile: its `level` and `value`, and bootstrap limits `lower` and `upper`."""

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
    r"""Quantiles of all values of all chunks, with bootstrap percentile intervals.

    **Arguments:**

    - `chunks`: called once for each pass, gives arrays of any shape and real dtype; the same values
      each time, in any order.
    - `levels`: between 0 and 1, in any order.
    - `confidence`: of the intervals, each from the $(1 - c)/2$ to the $(1 + c)/2$ quantile of the
      bootstrap distribution. Between two order statistics $r$ is the fractional position.
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
    limits = [_bootstrap_ranks(n, level, confidence) for level in levels]
    neighbours = [_neighbours(n, level) for level in levels]
    ranks = sorted(
        {r for pair in limits for r in pair} | {r for a, b, _ in neighbours for r in (a, b)}
    )
    if held is None:
        found = _select(chunks, whole, ranks, capacity)
    else:
        found = dict(zip(ranks, np.sort(held)[ranks].tolist(), strict=True))
    return tuple(
        Quantile(level, _between(found[a], found[b], t), found[lower], found[upper])
        for level, (a, b, t), (lower, upper) in zip(levels, neighbours, limits, strict=True)
    )


def _neighbours(count: int, level: float) -> tuple[int, int, float]:
    """The ranks, from 0, that a quantile lies between, and where."""
    position = (count - 1) * level
    rank = math.floor(position)
    return rank, min(rank + 1, count - 1), position - rank


def _between(a: float, b: float, t: float) -> float:
    """Linear interpolation, rounded as NumPy does."""
    return a + (b - a) * t if t < 0.5 else b - (b - a) * (1 - t)


def _bootstrap_ranks(count: int, level: float, confidence: float) -> tuple[int, int]:
    """The ranks, from 0, of the limits of the percentile interval."""
    r = (count - 1) * level + 1
    tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    ranks = np.ceil(count * betaincinv(r, count - r + 1, tails)) - 1
    lower, upper = np.clip(ranks, 0, count - 1)
    return int(lower), int(upper)


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
    """The parts of the cells that hold ranks, smaller by a factor of 2 at the least."""
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
    """The values that lie in the cells, which cell that is, and how far their keys lie into it."""
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
    """One cell that holds all values, and these themselves if they are few enough."""
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
    """The value that has a key."""
    bits = key ^ _SIGN if key & _SIGN else key ^ (2 * _SIGN - 1)
    return float(np.array([bits], np.uint64).view(np.float64)[0])


def _changed() -> ValueError:
    return ValueError(
        "Argument `chunks` must give the same values each time it is called, but their number "
        "changed from one pass to the next."
    )
