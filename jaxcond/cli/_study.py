"""`jaxcond study` and `jaxcond resume`: run a Monte Carlo study, or continue one."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import shutil
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.text import Text

from .. import plotting
from .. import study as studies
from ..files import holds
from . import _late as late
from ._common import (
    Parser,
    add_cache,
    check_distinct,
    check_store,
    check_writable,
    err,
    importable,
    out,
)
from ._summary import print_summary

_EXAMPLE = """\
A study file has keys such as samples = 100_000, seed = 0 and the tables [ensemble] (kind, width,
scales, ...) and [sweep] (width = [50, 100, 200],
scale_b = {start = 0.1, stop = 10, num = 9, spacing = "log"}).
`--set` changes any key: --set samples=1e6 --set sweep.width=[100,400] --set ensemble.kind=uniform.
"""


_TLS = {
    "ca": "certificate of the certificate authority, in PEM format",
    "cert": "client certificate",
    "key": "private key of the client certificate",
}


def _widths(text: str) -> dict[str, int]:
    parts = text.lower().split("x")
    try:
        numbers = [int(float(part)) if float(part).is_integer() else 0 for part in parts]
    except (ValueError, OverflowError):
        numbers = []
    if len(numbers) not in (1, 2) or min(numbers) < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a positive width like 200 nor a pair like 200x100"
        )
    return {"width": numbers[0]} if len(numbers) == 1 else {"p": numbers[0], "q": numbers[1]}


def add_study(commands: argparse._SubParsersAction[Parser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add both commands and their options."""
    study = commands.add_parser(
        "study",
        help="sample the distribution of the blow-up time over random initialisations",
        description=(
            "Run a Monte Carlo study of the blow-up time T* over random initialisations of a "
            "network. The command draws initial states, computes the blow-up time of each with a "
            "bracket, stores every record in a Zarr store, prints a summary and writes a figure. "
            "Times are in units of the effective model. If `ensemble.function` is set, the "
            "command prints its name and imports it. " + _EXAMPLE
        ),
    )
    add = study.add_argument
    add("file", nargs="?", type=Path, metavar="FILE", help="configuration in TOML")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set a configuration key, like ensemble.kind=orthogonal or samples=1e6; repeatable",
    )
    add(
        "--width",
        type=_widths,
        metavar="M|PxQ",
        help="width of both hidden layers, or a pair like 200x100; 1e9 is possible (default 200)",
    )
    add(
        "--samples",
        metavar="N",
        help="number of random initialisations per sweep point (default 10000)",
    )
    add(
        "--seed",
        metavar="N",
        help="random seed; sample i depends only on the seed and i (default 0)",
    )
    add(
        "--store",
        type=Path,
        metavar="FOLDER",
        help=(
            "folder for the records; an existing study is continued (default: FILE with the "
            "suffix .zarr; without FILE, the records are not stored)"
        ),
    )
    add(
        "--out",
        type=Path,
        metavar="FILE",
        help=(
            "figure file; its suffix sets the format (default: the store's name with the "
            "suffix .png, or study.png without a store)"
        ),
    )
    add(
        "--force",
        action="store_true",
        help="overwrite an existing figure and the store of another study",
    )
    _add_running(study)
    add_cache(study)
    study.set_defaults(command=_study)

    resume = commands.add_parser(
        "resume",
        help="continue an interrupted study, or extend a finished one",
        description=(
            "Continue the study in a store. Finished chunks are kept and missing chunks are "
            "computed, with the same numbers as in an uninterrupted run. The command imports the "
            "function of a `function` study and prints its name; the commands summary, plot and "
            "info never import it."
        ),
    )
    resume.add_argument("store", type=Path, metavar="STORE", help="the store of a study")
    resume.add_argument(
        "--samples", metavar="N", help="increase the number of samples per sweep point to N"
    )
    resume.add_argument(
        "--states",
        type=Path,
        metavar="FILE",
        help="new location of the states of a `file` study; other states are rejected",
    )
    resume.add_argument(
        "--trust",
        action="store_true",
        help=(
            "import the function named in the store even if another user created the store, or "
            "you on another machine or with another module; this runs the code of the module"
        ),
    )
    resume.add_argument(
        "--repair", action="store_true", help="recompute chunks that are damaged on disk"
    )
    _add_running(resume)
    add_cache(resume)
    resume.set_defaults(command=_resume)


def _add_running(parser: Parser) -> None:
    add = parser.add_argument
    add("--quiet", action="store_true", help="print errors only")
    add(
        "--log", action="store_true", help="print progress line by line, for the log of a batch job"
    )
    add(
        "--workers",
        type=int,
        metavar="N",
        help="compute in N local processes with Dask distributed",
    )
    add(
        "--scheduler",
        metavar="ADDRESS",
        help="compute on the workers of a Dask scheduler, like tcp://host:8786",
    )
    for name, what in _TLS.items():
        add(
            f"--tls-{name}",
            type=Path,
            metavar="FILE",
            help=f"{what}, for a scheduler at tls://host:8786 (default: Dask's configuration)",
        )
    add(
        "--any-version",
        action="store_true",
        help="continue a store that other versions of the packages computed",
    )


def _study(arguments: argparse.Namespace) -> int:
    late.session.begin(arguments)
    try:
        keys = _configuration(arguments)
        _announce(keys, quiet=arguments.quiet)
        study = studies.Study.from_dict(keys)
    except RecursionError:
        raise ValueError("the configuration is nested too deeply") from None
    path = arguments.store
    if path is None and arguments.file is not None:
        path = Path(arguments.file.with_suffix(".zarr").name)
    figure = arguments.out
    if figure is None:
        figure = Path("study.png" if path is None else f"{path.stem}.png")
    check_writable(figure)
    plotting.check_format(figure)
    check_distinct(store=path, out=figure)
    if path is not None:
        check_store(path)
    if not arguments.force:
        _keep_figure(figure, path, study)
    elif path is not None:
        _remove_other(path, study)
    with _resumable(path), _folder(path) as folder:
        if path is not None:
            _check_folder(folder)
        store, seconds = _run(study, folder, arguments)
        summary = studies.summarise(store)
        _tell(summary, seconds, arguments)
        written = [] if path is None else [f"Records in {path}"]
        if any(point.moments.count for point in summary.points):
            plotting.save(plotting.distributions(store, summary), figure, study.digest())
            written.append(f"Figure written to {figure}")
        else:
            written.append("No finite blow-up time: no figure.")
        for line in [] if arguments.quiet else written:
            out.print(Text(line), soft_wrap=True)
    return _code(summary)


def _keep_figure(figure: Path, path: Path | None, study: studies.Study) -> None:
    """Reject an existing figure, unless it is of this study or of the store to continue."""
    continues = path is not None and path.exists()
    if figure.exists() and not continues and not holds(figure, study.digest()):
        raise OSError(
            f"{figure} is there already: --out FILE writes to another file, --force over this one"
        )


def _remove_other(path: Path, study: studies.Study) -> None:
    """Remove the store of another study at the path, but never a folder that is not a store."""
    if not path.exists():
        return
    other = studies.open_store(path)
    if other.group.attrs.get("configuration_hash") != study.digest():
        with studies.locked(path):
            shutil.rmtree(path)


def _resume(arguments: argparse.Namespace) -> int:
    late.session.begin(arguments)
    check_store(arguments.store)
    if arguments.repair:
        studies.restore_attributes(arguments.store)
    store = studies.open_store(arguments.store)
    keys = store.study.to_dict()
    _check_trust(store, keys, arguments)
    _redirect(keys, arguments)
    if arguments.samples is not None:
        keys["samples"] = _value(arguments.samples)
    study = studies.Study.from_dict(keys)
    with _resumable(arguments.store):
        store, seconds = _run(study, arguments.store, arguments)
        summary = studies.summarise(store)
        _tell(summary, seconds, arguments)
    return _code(summary)


def _check_trust(store: studies.Store, keys: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Announce the imported function; reject stores that this user did not make."""
    function = keys["ensemble"].get("function")
    if function is None:
        return
    importable()
    if not arguments.trust and not studies.is_ours(function, dict(store.group.attrs)):
        place = studies.module_file(function) or "a module that is not there"
        raise studies.StoreError(
            f"{arguments.store} was not made by this user, on this machine, with this module. To "
            f"go on with it imports {function} from {place}, which runs that file; if you trust "
            "it, give --trust"
        )
    _announce(keys, quiet=arguments.quiet)


def _redirect(keys: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Replace the path of the states by that of `--states`."""
    path = keys["ensemble"].get("path")
    if arguments.states is not None:
        if path is None:
            raise ValueError(f"--states: {arguments.store} is no study of states from a file")
        keys["ensemble"]["path"] = str(arguments.states)
    elif path is not None and not Path(path).is_file():
        raise OSError(
            f"the states of {arguments.store} are no longer at {path}: --states FILE tells where "
            "they are"
        )


def _announce(keys: dict[str, Any], *, quiet: bool) -> None:
    """Print the function to import and its file; print nothing if the module does not exist."""
    ensemble = keys.get("ensemble")
    function = ensemble.get("function") if isinstance(ensemble, dict) else None
    if not isinstance(function, str):
        return
    importable()
    place = studies.module_file(function)
    if place is not None and not quiet:
        out.print(Text(f"Imports {function} from {place}"), soft_wrap=True)


def _tell(summary: studies.StudySummary, seconds: float, arguments: argparse.Namespace) -> None:
    if not arguments.quiet:
        print_summary(summary, seconds)


def _code(summary: studies.StudySummary) -> int:
    return 3 if any(point.statuses["not_converged"] for point in summary.points) else 0


def _configuration(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keys of the file, changed by the options."""
    keys = {} if arguments.file is None else studies.read_toml(arguments.file)
    for name in ("samples", "seed"):
        if getattr(arguments, name) is not None:
            keys[name] = _value(getattr(arguments, name))
    for assignment in arguments.set:
        name, equals, text = assignment.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"--set takes KEY=VALUE, not {assignment!r}")
        *tables, last = name.strip().split(".")
        place = keys
        for table in tables:
            place = place.setdefault(table, {})
            if not isinstance(place, dict):
                raise ValueError(f"--set {name}: `{table}` is not a table")
        place[last] = _value(text)
    if arguments.width is not None:
        ensemble = keys.setdefault("ensemble", {})
        if not isinstance(ensemble, dict):
            raise ValueError("--width: `ensemble` is not a table")
        for name in ("width", "p", "q"):
            ensemble.pop(name, None)
        ensemble |= arguments.width
    return keys


def _value(text: str) -> Any:
    """A TOML value; what is none is text, also in a list whose quotes the shell has taken."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        if re.fullmatch(r"\[[\w\s,]*\]", text):
            return [_value(part.strip()) for part in text[1:-1].split(",")]
        return text


@contextlib.contextmanager
def _folder(path: Path | None) -> Iterator[Path]:
    """The folder of the store, which is thrown away if it has no name."""
    if path is not None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="jaxcond-") as folder:
        yield Path(folder) / "study.zarr"


@contextlib.contextmanager
def _resumable(path: Path | None) -> Iterator[None]:
    """Say of an interrupt what becomes of the records."""
    try:
        yield
    except KeyboardInterrupt:
        if path is None:
            raise studies.Interrupted("nothing was kept: no --store") from None
        if not path.exists():
            raise
        raise studies.Interrupted(f"go on with `jaxcond resume {shlex.quote(str(path))}`") from None


def _check_folder(path: Path) -> None:
    parent = path.resolve().parent
    if not path.exists() and not parent.is_dir():
        raise OSError(f"cannot write {path}: there is no folder {parent}")
    if not os.access(path if path.exists() else parent, os.W_OK):
        raise OSError(f"cannot write {path}: permission denied")


def _crew(arguments: argparse.Namespace) -> studies.CrewMaker | None:
    if arguments.workers is None and arguments.scheduler is None:
        return None
    if arguments.workers is not None and arguments.scheduler is not None:
        raise ValueError("--workers starts processes here, --scheduler uses others: give one")
    try:
        # Only here: Dask distributed is an optional dependency.
        from ..study.cluster import dask_cluster
    except ImportError as error:
        raise ValueError(
            'computing on workers needs Dask distributed: install "jaxcond[cluster]"'
        ) from error
    ca, certificate, key = (getattr(arguments, f"tls_{name}") for name in _TLS)
    return dask_cluster(
        arguments.scheduler, num_workers=arguments.workers, tls=(ca, certificate, key)
    )


def _run(
    study: studies.Study, path: Path, arguments: argparse.Namespace
) -> tuple[studies.Store, float]:
    begin = time.perf_counter()
    crew = _crew(arguments)
    with contextlib.ExitStack() as stack:
        watcher = studies.Watcher()
        # Bars that nothing moves on a terminal are lines in a file.
        if arguments.log or not (arguments.quiet or err.is_terminal):
            watcher = late.progress.Lines()
        elif not arguments.quiet:
            watcher = late.progress.Bars()
            stack.callback(watcher.stop)
        store = studies.run_study(
            study,
            path,
            crew=crew,
            watcher=watcher,
            any_version=arguments.any_version,
            repair=getattr(arguments, "repair", False),
        )
    return store, time.perf_counter() - begin
