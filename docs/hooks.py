"""What mkdocs makes beside the pages that are written: reference, tables, formulas.

- `reference/*.md`: every public name of each namespace, by mkdocstrings. The names are those of the
  stubs `__init__.pyi`, from which the packages load them.
- `<!-- table NAME -->` becomes a table of numbers in `benchmarks/*.json`.
- Formulas become MathML, so that the site needs no script and no network.
"""

import ast
import html
import json
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]

# Those which the package shows, in the order of the site.
NAMESPACES = {
    "jaxcond": "States, blow-up times, trajectories, and what else is used every day.",
    "jaxcond.networks": "Real networks: data, training, prediction.",
    "jaxcond.bounds": "The bracket, the bounds of the theorems, closed forms.",
    "jaxcond.indicators": "Final stage, angles, alignment.",
    "jaxcond.ensembles": "Distributions of states.",
    "jaxcond.sampling": "Draws by index, quasi-Monte Carlo, infinite width.",
    "jaxcond.statistics": "Estimates with intervals.",
    "jaxcond.study": "Studies: configuration, runs, stores, summaries.",
    "jaxcond.study.cluster": "Studies on several processes or machines.",
    "jaxcond.plotting": "Figures from results.",
    "jaxcond.experiments": "What the paper's figures show, computed.",
    "jaxcond.checks": "The statements of the theory, checked.",
    "jaxcond.blowup": "Methods and sources of blow-up times, for those who add their own.",
}


def public_names(namespace: str) -> list[str]:
    """The public names of a namespace, its own modules left out."""
    path = ROOT.joinpath(*namespace.split("."))
    if (stub := path / "__init__.pyi").exists():
        return re.findall(r"^from \.\w[\w.]* import (\w+) as \1$", stub.read_text(), re.MULTILINE)
    tree = ast.parse(path.with_suffix(".py").read_text())
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [n.name for n in tree.body if isinstance(n, kinds) and not n.name.startswith("_")]


def reference_pages() -> dict[str, str]:
    """The text of each page of the reference by its path."""
    every_day = set(public_names("jaxcond"))
    overview = ["# Reference", "", "| namespace | |", "|---|---|"]
    pages = {}
    for namespace, summary in NAMESPACES.items():
        overview.append(f"| [`{namespace}`]({namespace}.md) | {summary} |")
        names = public_names(namespace)
        above = [] if namespace == "jaxcond" else [n for n in names if n in every_day]
        text = [f"# {namespace}", "", f"::: {namespace}", "    options:", "      members: []",
                "      show_root_heading: false", ""]  # fmt: skip
        if namespace == "jaxcond":
            rooms = ", ".join(f"[`{n}`]({n}.md)" for n in NAMESPACES if n != "jaxcond")
            text += [f"Namespaces: {rooms}.", ""]
        if above:
            links = ", ".join(f"[`{namespace}.{n}`][jaxcond.{n}]" for n in above)
            text += [f"Documented under `jaxcond`, where they are as well: {links}.", ""]
        for name in names:
            if name not in above:
                text += [f"::: {namespace}.{name}", ""]
        pages[f"reference/{namespace}.md"] = "\n".join(text)
    return {"reference/index.md": "\n".join([*overview, ""]), **pages}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path, text in reference_pages().items():
        files.append(File.generated(config, path, content=text))
    for picture in sorted((ROOT / "benchmarks").glob("*.png")):
        path = f"benchmarks/{picture.name}"
        files.append(File.generated(config, path, abs_src_path=str(picture)))
    return files


# Name of a table: file, path to its rows, and heading of each column: key of the row.
TABLES: dict[str, tuple[str, str, dict[str, str]]] = {
    "batches": ("batches", "batches/rows", {
        "width": "width", "states": "states", "jaxcond, µs a state": "jaxcond_us",
        "numba, µs a state": "numba_us", "ratio": "ratio",
        "largest relative difference": "difference"}),
    "ensemble": ("batches", "ensemble/rows", {
        "what": "what", "µs of a core for each sample": "us_of_a_core",
        "ratio to NumPy's drawing": "ratio_to_numpy"}),
    "latency": ("latency", "latency/rows", {
        "process": "process", "seconds": "jaxcond first_s", "multiple": "multiple",
        "second process, cache filled": "jaxcond second_s"}),
    "gpu": ("blowup_time", "gpu/rows", {
        "what": "what", "samples": "samples", "samples a second": "samples_per_s",
        "not converged": "not_converged", "largest difference": "difference_from_cpu",
        "first call, seconds": "first_call_s"}),
    "hard_states": ("hard_states", "widths", {
        "width": "width", "states": "states", "of negative energy": "negative_energy",
        "compared": "compared", "largest difference": "worst_difference"}),
    "calibration": ("calibration", "", {
        "family": "family", "dtype": "dtype", "states": "states",
        "errors exceeded": "errors exceeded", "brackets violated": "brackets violated",
        "median of error over true error": "median of error over true error"}),
    "gradient": ("trajectories", "gradient/rows", {
        "width": "width", "states": "states", "time, µs a state": "value, us each",
        "with gradient, µs a state": "with gradient, us each", "ratio": "ratio"}),
    "trajectory": ("trajectories", "one/rows", {
        "call": "call", "ms": "ms", "first call, seconds": "first call, s"}),
    "counts": ("trajectories", "counts/rows", {
        "method": "method", "trajectories": "trajectories", "ms a trajectory": "ms each",
        "ratio": "ratio"}),
    "prediction": ("networks", "prediction/worst", {
        "network": "setting", "largest relative error": "error"}),
    "training": ("networks", "speed/one network", {
        "loop": "loop", "threads": "threads", "ms an iteration": "ms an iteration",
        "over jaxcond's fastest": "over jaxcond's fastest",
        "first call, seconds": "first call, s"}),
    "flow": ("networks", "flow/plateau", {
        "network": "setting", "iterations of descent": "iterations of descent",
        "gradients of the flow": "gradients of the flow", "ratio": "ratio",
        "first call, seconds": "first call, s"}),
    "records": ("networks", "records/rows", {
        "observables": "observe", "ms a record": "ms a record"}),
    "overhead": ("studies", "overhead/rows", {
        "what": "what", "samples a second": "samples/s", "time over bare": "time over bare"}),
    "memory": ("studies", "memory/rows", {
        "samples": "samples", "run, seconds": "run, s", "summary, seconds": "summary, s",
        "largest memory, GB": "peak memory, GB"}),
    "workers": ("cluster", "workers/rows", {
        "workers": "workers", "samples a second": "samples/s", "seconds in all": "seconds in all"}),
}  # fmt: skip


def _cell(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}" if abs(value) >= 10_000 or value == int(value) else f"{value:,.4g}"
    return f"{value:.3g}"


def table(name: str) -> str:
    """A table of numbers that a benchmark has written, in Markdown."""
    file, path, columns = TABLES[name]
    rows = json.loads((ROOT / "benchmarks" / f"{file}.json").read_text())
    for key in path.split("/"):
        rows = rows[key] if key else rows
    if missing := [key for key in columns.values() if not any(key in row for row in rows)]:
        raise KeyError(f"benchmarks/{file}.json: no {missing} in {path}")
    lines = [columns, ["---"] * len(columns)]
    lines += [[_cell(row.get(key, "")) for key in columns.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def setup(place: str) -> str:
    """What a benchmark ran on: `file/section`, or `file`."""
    file, *path = place.split("/")
    section = json.loads((ROOT / "benchmarks" / f"{file}.json").read_text())
    for key in path:
        section = section[key]
    on = section["setup"]
    cores = "" if on["backend"] == "gpu" else f"{on['cpus']} cores of "
    return f"{cores}{on['device']}, {on['dtype']}, JAX {on['jax']}"


def on_page_markdown(markdown: str, **_: object) -> str:
    markdown = re.sub(r"<!-- table (\S+) -->", lambda m: table(m[1]), markdown)
    markdown = re.sub(r"<!-- setup (\S+) -->", lambda m: setup(m[1]), markdown)
    # On the site the pictures of the benchmarks lie beside the pages.
    return markdown.replace("](../benchmarks/", "](benchmarks/")


def on_page_content(content: str, **_: object) -> str:
    for kind, opening, closing in (("inline", r"\(", r"\)"), ("block", r"\[", r"\]")):
        pattern = rf'(class="arithmatex">){re.escape(opening)}(.*?){re.escape(closing)}(?=</)'
        content = re.sub(
            pattern,
            lambda m, kind=kind: m[1] + convert(html.unescape(m[2]).strip(), display=kind),
            content,
            flags=re.DOTALL,
        )
    return content
