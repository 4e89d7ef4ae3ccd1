"""`jaxcond summary`, `info`: what a store holds, in words and numbers."""

from __future__ import annotations

import argparse
import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from .. import statistics
from .. import study as studies
from ..files import written_whole
from . import _late as late
from ._common import (
    Parser,
    add_cache,
    check_distinct,
    check_store,
    check_writable,
    out,
    print_table,
)
from ._words import in_words


def add_summary(commands: argparse._SubParsersAction[Parser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add the commands and their options."""
    summary = commands.add_parser(
        "summary",
        help="print statistics of a study, write JSON or CSV, compare two studies",
        description=(
            "Print statistics of the study in a store, with confidence intervals: mean (with the "
            "control variate or quasi-Monte Carlo if the study has them, and the measured gain in "
            "variance), standard deviation, quantiles (order statistics), statuses, and the "
            "scaling with the width if the width is swept. Also works while the study runs."
        ),
    )
    add = summary.add_argument
    add("store", type=Path, metavar="STORE", help="the store of a study")
    add("--json", type=Path, metavar="FILE", help="also write everything to a JSON file")
    add("--csv", type=Path, metavar="FILE", help="also write one row per sweep point to a CSV file")
    add(
        "--compare",
        type=Path,
        metavar="STORE",
        help="also compare with another study, point by point: Welch and Kolmogorov-Smirnov tests",
    )
    add(
        "--confidence",
        type=float,
        default=0.95,
        metavar="LEVEL",
        help="confidence level of all intervals (default 0.95)",
    )
    add("--quiet", action="store_true", help="hide the statistics")
    add_cache(summary)
    summary.set_defaults(command=_summary)

    info = commands.add_parser(
        "info",
        help="print configuration, versions and progress of a study; verify its chunks",
        description="Print the contents of a store; --verify also checks every chunk.",
    )
    info.add_argument("store", type=Path, metavar="STORE", help="the store of a study")
    info.add_argument(
        "--verify", action="store_true", help="read every chunk and compare its checksum"
    )
    info.set_defaults(command=_info)


def _text(value: Any) -> str:
    """A swept value."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(value: float, error: float | None = None) -> str:
    """A number with the digits that its error leaves significant."""
    if not math.isfinite(value):
        return "–"
    if error is None or not math.isfinite(error) or error <= 0 or value == 0:
        return f"{value:.8g}"
    digits = math.ceil(math.log10(abs(value) / error)) + 1
    return f"{value:.{min(max(digits, 2), 15)}g}"


def _limit(value: float, width: float) -> str:
    """An end of an interval; infinite if too few samples bound it."""
    return f"{value:g}".replace("inf", "∞") if math.isinf(value) else _number(value, width)


def print_summary(summary: studies.StudySummary, seconds: float | None = None) -> None:
    """Print the results in words and a table, with one row per sweep point."""
    for line in in_words(summary):
        out.print(Text(line))
    if len(summary.points) == 1:
        _print_point(summary, summary.points[0], seconds)
    else:
        _print_points(summary)
        if seconds is not None:
            total = sum(point.num_samples for point in summary.points)
            out.print(f"{total} samples in {seconds:.1f} s", highlight=False)
    for others, scaling in summary.scalings:
        _print_scaling(others, scaling, summary.study.quantity.rescaled)
    if not summary.complete:
        out.print("The study is not complete.")


def _print_point(
    summary: studies.StudySummary, point: studies.PointSummary, seconds: float | None
) -> None:
    study, rescaled = summary.study, summary.study.quantity.rescaled
    kind, settings = study.settings[point.point]
    layers = f", {settings.depth} layers" if settings.depth != 3 else ""
    title = f"{study.quantity.title}, {kind}, width {point.p} x {point.q}{layers}, "
    title += f"{point.num_samples} samples"
    table = Table(title=title, show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    best, plain, root = point.mean, point.plain, point.scale
    level = f"{summary.confidence:.0%}"
    rows: list[tuple[str, str]] = []
    if best.method != "plain":
        rows += [
            (f"mean by {best.method}", _pair(best.mean, best.standard_error)),
            ("its variance, plain over this", f"{best.gain:.4g}"),
        ]
    rows += [("mean ± standard error", _pair(plain.mean, plain.standard_error))]
    rows += [("standard deviation", _short(point.moments.deviation, 4))]
    rows += [
        (
            f"quantile {q.level:.1%} ({level} interval)",
            f"{_number(q.value, q.upper - q.lower)} "
            f"({_limit(q.lower, q.upper - q.lower)}, {_limit(q.upper, q.upper - q.lower)})",
        )
        for q in point.quantiles
    ]
    rows += (
        []
        if rescaled == study.quantity.symbol
        else [
            (f"mean of {rescaled}", _pair(root * best.mean, root * best.standard_error)),
            (f"{rescaled} at infinite width", _number(point.limit)),
            ("widest bracket, relative", _short(point.widest_bracket, 2)),
            ("largest numerical error, relative", _short(point.largest_error, 2)),
        ]
    )
    total = max(point.num_samples, 1)
    shares = [(name, n) for name, n in point.statuses.items() if n or name == "converged"]
    rows += [(f"status {name}", f"{n}  ({n / total:.4%})") for name, n in shares]
    rows += [(f"settled by {name}", str(n)) for name, n in point.settled_by.items() if n]
    rows += [
        (f"{name}: mean, deviation", f"{_short(m.mean, 6)}, {_short(m.deviation, 3)}")
        for name, m in point.observables.items()
    ]
    if seconds is not None:
        rate = point.num_samples / seconds
        rows.append(("time", f"{seconds:.2f} s  ({rate:,.0f} samples/s with compilation)"))
    for row in rows:
        table.add_row(*row)
    out.print(table)


def _short(value: float, digits: int) -> str:
    return f"{value:.{digits}g}" if math.isfinite(value) else "–"


def _pair(value: float, error: float) -> str:
    return f"{_short(value, 8)} ± {_short(error, 2)}"


def _print_points(summary: studies.StudySummary) -> None:
    study = summary.study
    table = Table(
        title=f"{study.quantity.title}, {len(summary.points)} points, seed {study.seed}",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in study.sweep:
        table.add_column(name, justify="right")
    gains = any(point.mean.method != "plain" for point in summary.points)
    symbol, rescaled = study.quantity.symbol, study.quantity.rescaled
    names = ["samples", f"mean {symbol} ± error", "deviation"]
    names += [] if rescaled == symbol else [rescaled, "limit"]
    for name in (*names, *(["gain"] if gains else []), "failed"):
        table.add_column(name, justify="right", no_wrap=True)
    for point in summary.points:
        best = point.mean
        cells = [_text(value) for value in point.coordinates.values()]
        cells += [
            str(point.num_samples),
            f"{_number(best.mean, best.standard_error)} ± {_short(best.standard_error, 1)}",
            _short(point.moments.deviation, 3),
        ]
        cells += (
            []
            if rescaled == symbol
            else [
                _number(point.scale * best.mean, point.scale * best.standard_error),
                _short(point.limit, 6),
            ]
        )
        if gains:
            cells.append(_short(best.gain, 4))
        cells.append(str(point.num_samples - point.moments.count))
        table.add_row(*cells)
    methods = {point.mean.method for point in summary.points} - {"plain"}
    print_table(table)
    if gains:
        out.print(
            f"Means by {' and '.join(sorted(methods))}; gain: variance of the plain mean over "
            "that of this one.",
            highlight=False,
        )


def _print_scaling(others: dict[str, Any], scaling: statistics.Scaling, rescaled: str) -> None:
    where = ", ".join(f"{name} {_text(value)}" for name, value in others.items())
    table = Table(
        title=f"Scaling with the width m{': ' + where if where else ''}",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for name in ("quantity", "value ± error", "interval", "fit"):
        table.add_column(name, justify="left" if name == "quantity" else "right")
    fits: list[tuple[str, statistics.Fitted]] = [
        (f"limit of {rescaled}", scaling.limit),
        ("its 1/m correction", scaling.correction),
        ("exponent α of the mean ~ m^-α", scaling.mean_exponent),
        ("β of the fluctuation ~ m^-β", scaling.fluctuation_exponent),
        ("amplitude s of s/√m", scaling.amplitude),
    ]
    for name, fit in fits:
        table.add_row(
            name,
            f"{_number(fit.value, fit.error)} ± {_short(fit.error, 1)}",
            f"{_number(fit.lower, fit.error)}, {_number(fit.upper, fit.error)}",
            _of_fit(fit),
        )
    print_table(table)
    out.print(f"Fitted: √m·T* = {scaling.limit.model}", highlight=False, soft_wrap=True)


def _of_fit(fit: statistics.Fitted) -> str:
    """Whether the data agree with a fit."""
    verdict = {True: "agrees", False: "DISAGREES", None: "unchecked"}[fit.agrees]
    return verdict if fit.agrees is None else f"{verdict}, p = {fit.p_value:.1g}"


def _summary(arguments: argparse.Namespace) -> int:
    late.session.begin(arguments)
    for path in (arguments.json, arguments.csv):
        if path is not None:
            check_writable(path)
    check_distinct(json=arguments.json, csv=arguments.csv)
    if not 0 < arguments.confidence < 1:
        raise ValueError(f"--confidence must be between 0 and 1, but is {arguments.confidence}")
    for path in filter(None, (arguments.store, arguments.compare)):
        check_store(path)
    store = studies.open_store(arguments.store)
    other = None if arguments.compare is None else studies.open_store(arguments.compare)
    if other is not None and other.study.points != store.study.points:
        raise ValueError(
            f"{arguments.store} and {arguments.compare} have different sweep points: they cannot "
            "be compared point by point"
        )
    summary = studies.summarise(store, confidence=arguments.confidence)
    if not arguments.quiet:
        print_summary(summary)
    if other is not None:
        _print_comparison(store, other, arguments)
    if arguments.json is not None:
        with written_whole(arguments.json) as temporary:
            text = json.dumps(summary.to_dict(), indent=1, allow_nan=False)
            Path(temporary).write_text(text + "\n")
        out.print(Text(f"Statistics written to {arguments.json}"), soft_wrap=True)
    if arguments.csv is not None:
        rows = summary.rows()
        columns = list(dict.fromkeys(name for row in rows for name in row))
        with written_whole(arguments.csv) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        out.print(Text(f"Table written to {arguments.csv}"), soft_wrap=True)
    return 3 if any(point.statuses["not_converged"] for point in summary.points) else 0


def _print_comparison(
    first: studies.Store, second: studies.Store, arguments: argparse.Namespace
) -> None:
    title = Text(f"{arguments.store} against {arguments.compare}", style="table.title")
    table = Table(title=title, box=box.SIMPLE_HEAD)
    for name in ("point", "difference of means", "interval", "p (Welch)", "ratio of variances",
                 "interval", "KS", "p (KS)"):  # fmt: skip
        table.add_column(name, justify="right")
    for point in range(len(first.study.points)):
        a, b = (_all_times(store, point) for store in (first, second))
        name = first.study.name(point) or "all"
        if min(a.size, b.size) < 2:
            table.add_row(name, *["–"] * 7)
            continue
        comparison = statistics.compare(a, b, arguments.confidence)
        width = comparison.difference_upper - comparison.difference_lower
        table.add_row(
            name,
            _number(comparison.difference, width),
            f"{_number(comparison.difference_lower, width)}, "
            f"{_number(comparison.difference_upper, width)}",
            f"{comparison.p_value:.3g}",
            _short(comparison.variance_ratio, 4),
            f"{_short(comparison.variance_ratio_lower, 4)}, "
            f"{_short(comparison.variance_ratio_upper, 4)}",
            f"{comparison.ks_statistic:.4g}",
            f"{comparison.ks_p_value:.3g}",
        )
    print_table(table)


def _all_times(store: studies.Store, point: int) -> Any:
    pieces = list(studies.converged_times(store, point))
    return np.concatenate(pieces) if pieces else np.zeros(0)


def _info(arguments: argparse.Namespace) -> int:
    check_store(arguments.store)
    store = studies.open_store(arguments.store)
    study = store.study
    finished = store.finished()
    total = study.samples * len(study.points)
    done = int(finished.sum())
    attributes = dict(store.group.attrs)
    table = Table(show_header=False, box=box.SIMPLE)
    sizes = ", ".join(f"{name} {size}" for name, size in study.dims.items())
    stored = json.loads(str(attributes["versions"]))
    installed = studies.versions()
    listed = ", ".join(
        f"{name} {version}"
        + ("" if installed.get(name) == version else f" (here {installed.get(name)})")
        for name, version in stored.items()
    )
    for name, value in (
        ("configuration", json.dumps(study.to_dict())),
        ("hash", attributes.get("configuration_hash", "–")),
        ("points", f"{len(study.points)}" + (f" ({sizes})" if sizes else "")),
        ("samples", f"{done} of {total} ({done / total:.2%})"),
        ("complete", "yes" if attributes.get("complete") else "no"),
        ("chunk", f"{store.chunk} samples"),
        ("drawn", "in exact reduced form" if study.reduced else "in full"),
        ("created", f"{attributes.get('created', '–')} on {attributes.get('platform', '–')}"),
        ("versions", listed),
        ("variables", ", ".join(sorted(name for name, _ in store.group.arrays()))),
    ):
        table.add_row(name, Text(str(value), overflow="fold"))
    out.print(table)
    if not arguments.verify:
        return 0
    damaged = studies.damages(store)
    for damage in damaged:
        out.print(Text(store.describe_damage(damage)), soft_wrap=True)
    lost = len({(d.point, d.chunk) for d in damaged if d.point is not None})
    out.print(f"{int((finished > 0).sum()) - lost} chunks can be read, {lost} not.")
    return 1 if damaged else 0
