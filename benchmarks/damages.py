"""Detects, reports and restores many kinds of damage to stores, bit for bit.

    python benchmarks/damages.py                          # 200 damages, some minutes on two cores
    python benchmarks/damages.py --quick                  # 2 of each kind
    python benchmarks/damages.py --out benchmarks/damages.json

Each damage affects a copy of a finished study at a random place. Counted are the damages that a
summary refuses (`summary`), those that `damages`, which is `jaxcond info --verify`, names
(`verify`), and those after which a run with `repair` leaves every file as it was (`restored`).
Exits with 1 if a damage is not verified or not restored, or if a summary gives other numbers.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

jax.config.update("jax_enable_x64", True)

import numpy as np
import zarr
from rich.console import Console
from rich.table import Table

import jaxcond as jc
from jaxcond.study import StoreError, damages, open_store, restore_attributes, run_study

Random = np.random.Generator
STUDY = jc.Study(samples=75, chunk=16, seed=3, sweep={"width": [20, 50, 80]})
# The last chunk of each point, as it was before the study was extended.
BEFORE = jc.Study(samples=70, chunk=16, seed=3, sweep={"width": [20, 50, 80]})
NAMES = ("blowup_time", "lower", "upper", "error", "status", "num_steps", "stage")
DAMAGES, QUICK = 14, 2


def chunk_file(path: Path, random: Random) -> Path:
    return path / random.choice(NAMES) / "c" / str(random.integers(3)) / str(random.integers(5))


def described(path: Path, random: Random) -> Path:
    return path / random.choice([*NAMES, "marks", "width", "."]) / "zarr.json"


def any_file(path: Path, random: Random) -> Path:
    kinds: list[Callable[[Path, Random], Path]] = [chunk_file, chunk_file, described]
    files = [kind(path, random) for kind in kinds]
    files += [path / "marks" / "c" / "0" / "0" / "0", path / "width" / "c" / "0"]
    files.append(path / "marks" / "description.json")
    return files[random.integers(len(files))]


def flip(path: Path, random: Random, old: Path) -> None:
    file = any_file(path, random)
    content = bytearray(file.read_bytes())
    content[random.integers(len(content))] ^= 1 << int(random.integers(8))
    file.write_bytes(content)


def truncate(path: Path, random: Random, old: Path) -> None:
    file = any_file(path, random)
    content = file.read_bytes()
    file.write_bytes(content[: random.integers(len(content))])


def remove(path: Path, random: Random, old: Path) -> None:
    any_file(path, random).unlink()


def swap(first: Path, second: Path) -> None:
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)


def swap_within(path: Path, random: Random, old: Path) -> None:
    # Times, which are never the same in two chunks.
    folder = path / random.choice(NAMES[:4]) / "c" / str(random.integers(3))
    a, b = random.choice(4, 2, replace=False)
    swap(folder / str(a), folder / str(b))


def swap_between(path: Path, random: Random, old: Path) -> None:
    folder = path / random.choice(NAMES[:4]) / "c"
    a, b = random.choice(3, 2, replace=False)
    chunk = str(random.integers(5))
    swap(folder / str(a) / chunk, folder / str(b) / chunk)


def copy_old(path: Path, random: Random, old: Path) -> None:
    place = Path(str(random.choice(NAMES))) / "c" / str(random.integers(3)) / "4"
    shutil.copy(old / place, path / place)


def edit_values(path: Path, random: Random, old: Path) -> None:
    array: Any = zarr.open_group(path, mode="r+")[random.choice(NAMES[:4])]
    array[random.integers(3), random.integers(75)] *= 1 + 10.0 ** -random.integers(1, 14)


def edit_status(path: Path, random: Random, old: Path) -> None:
    array: Any = zarr.open_group(path, mode="r+")["status"]
    array[random.integers(3), random.integers(75)] = random.choice([-1, 1, 4, 5, 99])


def edit_mark(path: Path, random: Random, old: Path) -> None:
    array: Any = zarr.open_group(path, mode="r+")["marks"]
    value = int(random.choice([-5, 0, 1, 8, 15, 17, 20, 51, 10**6]))
    column = 0 if random.random() < 0.7 else int(random.integers(1, 8))
    array[random.integers(3), random.integers(5), column] = value


def zero_marks(path: Path, random: Random, old: Path) -> None:
    array: Any = zarr.open_group(path, mode="r+")["marks"]
    array[random.integers(3), random.integers(5)] = 0


def remove_marks(path: Path, random: Random, old: Path) -> None:
    if random.random() < 0.5:
        (path / "marks" / "c" / "0" / "0" / "0").unlink()
    else:
        shutil.rmtree(path / "marks")


def edit_attribute(path: Path, random: Random, old: Path) -> None:
    changes = {
        "chunk": 7, "samples": 60, "complete": False, "seed": 4, "versions": "{}", "format": 1,
        "identity": "{}", "methods": "{}", "configuration_hash": "0", "created": "today",
        "configuration": json.dumps({**STUDY.to_dict(), "seed": 4}),
    }  # fmt: skip
    name = str(random.choice(list(changes)))
    file = path / "zarr.json"
    content = json.loads(file.read_text())
    if random.random() < 0.7:
        content["attributes"][name] = changes[name]
    else:
        del content["attributes"][name]
    file.write_text(json.dumps(content))


def damage_description(path: Path, random: Random, old: Path) -> None:
    file = described(path, random)
    text = file.read_text()
    file.write_text(str(random.choice(["", "{", "[]", "null", "{}", text.replace("3", "4", 1)])))


def remove_coordinate(path: Path, random: Random, old: Path) -> None:
    if random.random() < 0.5:
        shutil.rmtree(path / "width")
    else:
        array: Any = zarr.open_group(path, mode="r+")["width"]
        array[random.integers(3)] = 30


def folder_for_file(path: Path, random: Random, old: Path) -> None:
    file = any_file(path, random)
    file.unlink()
    file.mkdir()
    if random.random() < 0.5:
        (file / "file").write_text("text")


KINDS: dict[str, Callable[[Path, Random, Path], None]] = {
    "a bit flipped": flip,
    "a file cut off": truncate,
    "a file removed": remove,
    "chunks of a point swapped": swap_within,
    "chunks of two points swapped": swap_between,
    "an old chunk copied over a new one": copy_old,
    "values edited by Zarr": edit_values,
    "status edited by Zarr": edit_status,
    "mark edited by Zarr": edit_mark,
    "mark set to zero": zero_marks,
    "marks removed": remove_marks,
    "attribute edited or removed": edit_attribute,
    "`zarr.json` damaged": damage_description,
    "coordinate removed or edited": remove_coordinate,
    "a folder in the place of a file": folder_for_file,
}


def contents(path: Path) -> dict[str, Any]:
    """All files: chunks as they are, and what descriptions mean."""
    return {
        str(file.relative_to(path)): (
            json.loads(file.read_bytes()) if file.suffix == ".json" else file.read_bytes()
        )
        for file in path.rglob("*")
        if file.is_file()
    }


def strike(
    kind: str, path: Path, old: Path, random: Random, expected: str, whole: dict[str, Any]
) -> dict[str, bool]:
    """What becomes of one damage."""
    KINDS[kind](path, random, old)
    found = {"changed": contents_differ(path, whole)}
    found["summary"], found["silent"] = False, False
    try:
        found["silent"] = told(path) != expected
    except StoreError:
        found["summary"] = True
    try:
        found["verify"] = bool(damages(open_store(path)))
    except StoreError:
        found["verify"] = True
    try:
        restore_attributes(path)
        run_study(STUDY, path, repair=True)
        found["restored"] = contents(path) == whole
    except StoreError as error:
        Console().print(f"{kind}: {error}", soft_wrap=True)
        found["restored"] = False
    return found


def contents_differ(path: Path, whole: dict[str, Any]) -> bool:
    try:
        return contents(path) != whole
    except ValueError:
        return True


def told(path: Path) -> str:
    return json.dumps(jc.summarise(path).to_dict(), sort_keys=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the places that are damaged")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    console, random = Console(), np.random.default_rng(arguments.seed)
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole, old, path = folder / "whole.zarr", folder / "old.zarr", folder / "study.zarr"
        run_study(STUDY, whole)
        run_study(BEFORE, old)
        expected, files = told(whole), contents(whole)
        for kind, count in counts.items():
            while count["damages"] < (QUICK if arguments.quick else DAMAGES):
                shutil.copytree(whole, path)
                found = strike(kind, path, old, random, expected, files)
                shutil.rmtree(path)
                # What is the same as before is no damage: a status set to what it was.
                if found["changed"]:
                    count["damages"] += 1
                    count.update({name: int(value) for name, value in found.items()})
    table = Table("damage", "number", "summary refuses", "verify names", "restored", "silent")
    for kind, count in counts.items():
        columns = ("damages", "summary", "verify", "restored", "silent")
        table.add_row(kind, *(str(count[column]) for column in columns))
    console.print(table)
    total = sum((count for count in counts.values()), Counter())
    good = total["verify"] == total["restored"] == total["damages"] and not total["silent"]
    console.print(
        f"{total['damages']} damages: {total['verify']} named, {total['restored']} restored bit "
        f"for bit, {total['silent']} that change a number of a summary unnoticed"
    )
    if arguments.out is not None:
        rows = {kind: dict(count) for kind, count in counts.items()}
        arguments.out.write_text(
            json.dumps({"damages": total["damages"], "kinds": rows}, indent=1) + "\n"
        )
    if not good:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
