"""Every code block of the README and of the documentation, run as a reader would type it.

The blocks of one page run in order, in one namespace and one empty folder: Python, command lines
(`sh`), and files whose first line names them (`# study.toml`). Where a comment follows a `print`,
it is what is printed; a comment that begins with a number after an expression is its value. Numbers
are compared to six digits; `...` stands for anything, also for further digits. `documentation.toml`
has the sizes that are smaller here than on the page, and the blocks that are not run, with the
reason.
"""

import ast
import math
import re
import shlex
import tomllib
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from io import StringIO
from itertools import takewhile
from pathlib import Path
from runpy import run_path
from types import ModuleType

import jax
import matplotlib.pyplot as plt
import pytest

from jaxcond.cli import main

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
NOTES = tomllib.loads((Path(__file__).parent / "documentation.toml").read_text())

# Relative; below the second number what is printed is rounding, which differs between machines.
TOLERANCE, ROUNDING = 1e-6, 1e-9

FENCE = re.compile(r"^( *)```(\w*).*?\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?<=\n\n)((?:    \S.*\n)+)")
COMMAND = re.compile(r"(?:[A-Z_]+=\S* )*(?:jaxcond|python|pip|dask|kubectl) ")
NUMBER = re.compile(r"[-+−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")


@dataclass
class Block:
    language: str
    text: str
    line: int
    is_smaller: bool = False

    def begins_with(self, notes: list[dict]) -> bool:
        return any(self.text.startswith(note["begins"]) for note in notes)

    def without(self, notes: list[dict]) -> str:
        """The text without the lines that begin like a note."""
        words = tuple(note["begins"] for note in notes)
        return "".join(n for n in self.text.splitlines(True) if not n.startswith(words))


def blocks_of(page: str) -> list[Block]:
    blocks, prose = [], page
    for match in FENCE.finditer(page):
        indent, language, text = match.groups()
        text = "\n".join(line.removeprefix(indent) for line in text.split("\n"))
        blocks.append(Block(language, text, page.count("\n", 0, match.start(3)) + 1))
        blank = re.sub(r"[^\n]", "~", match.group())
        prose = prose[: match.start()] + blank + prose[match.end() :]
    for match in INDENTED.finditer(prose):
        text = re.sub("^    ", "", match.group(), flags=re.MULTILINE)
        if COMMAND.match(text):
            blocks.append(Block("sh", text, page.count("\n", 0, match.start()) + 1))
    return sorted(blocks, key=lambda block: block.line)


def agrees(printed: str, promised: str) -> bool:
    """Whether the same is printed, but for `...` and the last digits of numbers."""
    printed, promised = (" ".join(text.split()) for text in (printed, promised))
    pattern, numbers, position = "", [], 0
    for match in NUMBER.finditer(promised):
        pattern += re.escape(promised[position : match.start()]) + f"({NUMBER.pattern})"
        numbers.append((match.group(), promised.startswith("...", match.end())))
        position = match.end()
    pattern += re.escape(promised[position:])
    match = re.fullmatch(pattern.replace(re.escape("..."), ".*?"), printed)
    if match is None:
        return False
    for (number, is_cut), text in zip(numbers, match.groups(), strict=True):
        if is_cut:
            if not text.startswith(number):
                return False
            continue
        got, known = (float(n.replace(",", "").replace("−", "-")) for n in (text, number))
        if abs(known) > ROUNDING and not math.isclose(got, known, rel_tol=TOLERANCE):
            return False
    return True


def comment_below(lines: list[str], statement: ast.stmt) -> str:
    below = takewhile(lambda line: line.startswith("#"), lines[statement.end_lineno :])
    return "\n".join(line.removeprefix("#") for line in below)


def value_beside(lines: list[str], statement: ast.stmt) -> str:
    comment = lines[statement.end_lineno - 1][statement.end_col_offset :].strip()
    match = re.match(rf"# *({NUMBER.pattern}(?:\.\.\.)?)", comment)
    return match.group(1) if match else ""


def run_python(block: Block, page: Path, names: dict, *, compare: bool) -> None:
    lines = block.text.split("\n")
    for statement in ast.parse(block.text).body:
        is_expression = isinstance(statement, ast.Expr)
        prints = is_expression and ast.unparse(statement).startswith("print(")
        promised = ""
        if is_expression:
            promised = (comment_below if prints else value_beside)(lines, statement)
        ast.increment_lineno(statement, block.line - 1)
        output, value = StringIO(), None
        with redirect_stdout(output):
            if is_expression:
                value = eval(compile(ast.Expression(statement.value), page, "eval"), names)
            else:
                exec(compile(ast.Module([statement], []), page, "exec"), names)
        if compare and promised:
            printed = output.getvalue() if prints else str(value)
            where = f"{page.name}:{statement.end_lineno}"
            assert agrees(printed, promised), f"{where} prints\n{printed}\nand not\n{promised}"


def run_commands(text: str, patch: pytest.MonkeyPatch) -> None:
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            patch.setenv(*words.pop(0).split("=", 1))
        if not words:
            continue
        assert words[0] == "jaxcond", f"no test runs {line!r}: say why in documentation.toml"
        with pytest.raises(SystemExit) as end, redirect_stdout(StringIO()):
            main(words[1:])
        assert not end.value.code, line


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty one to work in. What pages and commands say to JAX is taken back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("JAXCOND_CACHE_DIR", str(tmp_path / "cache"))
    names = [name for name in dir(jax.config) if name.startswith("jax_compilation_cache")]
    before = {name: getattr(jax.config, name) for name in names}
    with jax.numpy_rank_promotion("allow"):
        yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    plt.close("all")


def page_parameters() -> list:
    slow = {name for name, notes in NOTES.items() if notes.get("slow")}
    return [pytest.param(n, marks=[pytest.mark.slow] * (n in slow)) for n in PAGES]


@pytest.mark.parametrize("name", page_parameters())
@pytest.mark.usefixtures("folder")
@pytest.mark.filterwarnings("default")
def test_every_block_runs(name, monkeypatch):
    notes, page = NOTES.get(name, {}), PAGES[name]
    text, blocks = page.read_text(), blocks_of(page.read_text())
    for old, _ in notes.get("smaller", []):
        assert old in text, f"{name} has no {old!r} to be made smaller"
    for kind in ("not_run", "instead"):
        for note in notes.get(kind, []):
            met = [b for b in blocks if b.begins_with([note]) or b.without([note]) != b.text]
            assert met, f"{name} has nothing that begins with {note['begins']!r}"

    names: dict = {"__name__": "documentation"}
    exec(notes.get("before", ""), names)
    runnable = []
    for block in blocks:
        for old, new in notes.get("smaller", []):
            block.is_smaller |= old in block.text
            block.text = block.text.replace(old, new)
        if file := re.match(r"# (\w+\.(?:toml|yaml|py|csv))\n", block.text):
            Path(file.group(1)).write_text(block.text)
        elif not block.begins_with(notes.get("not_run", [])):
            runnable.append(block)
    compare = True
    for block in runnable:
        for note in notes.get("instead", []):
            if block.begins_with([note]):
                block.text = note["code"]
        compare = compare and not block.is_smaller
        if block.language == "python":
            run_python(block, page, names, compare=compare)
        elif block.language in ("sh", "bash"):
            run_commands(block.without(notes.get("not_run", [])), monkeypatch)


def test_a_wrong_output_is_seen():
    promised = "T* = 0.08220517400825775 (converged, error 5e-15, bracket [0.0822..."
    assert agrees("T* = 0.08220517400825771 (converged, error 7e-15, bracket [0.08221]", promised)
    assert not agrees("T* = 0.08220617 (converged, error 5e-15, bracket [0.08221, 1]", promised)
    assert not agrees("T* = 0.08220517400825771 (converged, error 7e-15, bracket [1]", promised)
    assert not agrees("T* = 0.08220517400825771 (ill-conditioned)", promised)
    assert agrees("10,990.0", "10990")
    assert not agrees("10,991.5", "10990")


def test_every_note_is_of_a_page_and_has_a_reason():
    assert set(NOTES) <= set(PAGES)
    for notes in NOTES.values():
        for note in notes.get("not_run", []) + notes.get("instead", []):
            assert len(note["why"]) > 10


def test_the_readme_is_short():
    assert (ROOT / "README.md").read_text().count("\n") < 150


def test_every_public_name_is_in_the_reference():
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    hooks = run_path(str(ROOT / "docs" / "hooks.py"))
    pages = "\n".join(hooks["reference_pages"]().values())
    for name in hooks["NAMESPACES"]:
        module = import_module(name)
        public = getattr(module, "__all__", None) or [
            n for n, value in vars(module).items()
            if not n.startswith("_") and getattr(value, "__module__", "").startswith(name)
        ]  # fmt: skip
        for n in (n for n in public if not isinstance(getattr(module, n), ModuleType)):
            assert re.search(rf"\b{re.escape(name)}\.{n}\b", pages), f"{name}.{n}"
