"""Compiles the kernel when the package is built; without a compiler, skips the kernel.

Hatchling runs this hook for wheels and editable installations. The kernel is compiled once per
instruction set, so that one wheel works on all processors of a platform. It needs neither Python's
headers nor a compiler on the machine where it is installed.
"""

import importlib.util
import os
import platform
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path(__file__).parent
LIBRARY = FOLDER / "libjaxcond.so"
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-pthread")
# The width of the vectors in bytes, and the flags of the compiler.
TARGETS = {"baseline": (32, ("-Wno-psabi",))}
X86_TARGETS = {
    "avx2": (32, ("-mavx2", "-mfma")),
    "avx512": (64, ("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma")),
}


class Kernel(BuildHookInterface):
    """The build hook."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the kernel and add the library to the wheel."""
        LIBRARY.unlink(missing_ok=True)
        try:
            compile_kernel(LIBRARY)
        except (OSError, RuntimeError) as error:
            self.app.display_warning(
                f"jaxcond is installed without its native kernel, which needs a C++17 compiler: "
                f"{error}. JAX programs are used instead."
            )
            return
        build_data["artifacts"].append("jaxcond/_native/libjaxcond.so")
        build_data["pure_python"] = False
        tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{tag}"


def compile_kernel(library: Path) -> None:
    """Compile and link the kernel.

    **Raises:** `RuntimeError` or `OSError` on failure.
    """
    compiler = _compiler()
    package = importlib.util.find_spec("jaxlib")
    if package is None or not package.submodule_search_locations:
        raise RuntimeError("the headers of jaxlib are required, but jaxlib is not installed")
    headers = Path(package.submodule_search_locations[0]) / "include"
    targets = dict(TARGETS)
    defines: tuple[str, ...] = ()
    if platform.machine().lower() in ("x86_64", "amd64"):
        targets |= X86_TARGETS
        defines = ("-DJAXCOND_X86",)
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            Path(folder) / f"{name}.o": (
                *FLAGS,
                *flags,
                "-fvisibility=hidden",
                f"-DJAXCOND_TARGET={name}",
                f"-DJAXCOND_VECTOR_BYTES={width}",
                str(FOLDER / "kernel.cpp"),
            )
            for name, (width, flags) in targets.items()
        }
        commands[Path(folder) / "library.o"] = (
            *FLAGS,
            *defines,
            f"-isystem{headers}",
            str(FOLDER / "library.cpp"),
        )
        running = [
            _start(compiler, "-c", *flags, "-o", str(file)) for file, flags in commands.items()
        ]
        for process in running:
            _finish(process)
        objects = [str(file) for file in commands]
        built = Path(folder) / library.name
        _finish(_start(compiler, "-shared", "-pthread", "-o", str(built), *objects))
        shutil.copyfile(built, library)


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        path = shutil.which(name) if name else None
        if path:
            return path
    raise RuntimeError("none was found")


def _start(*command: str) -> subprocess.Popen:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _finish(process: subprocess.Popen) -> None:
    output, _ = process.communicate()
    if process.returncode:
        last = output.strip().splitlines()[-1:] or ["no message"]
        raise RuntimeError(f"the compiler failed ({last[0]})")
