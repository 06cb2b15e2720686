"""Compile the kernels: ``python -m runtime.kernels.build --out build/kernels``.

nvcc makes PTX once, for SM 8.0; ptxas makes a cubin of it for each SM. ``kernels.json`` beside them says of which
sources and with which compiler, and what registers each kernel takes. The PTX says it is version 7.0, the oldest that
has every instruction in it, and ptxas is given just that: a driver older than the toolkit, JetPack 6's, takes it too.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from runtime.cli import run
from runtime.errors import IntvitError
from runtime.files import atomic_write_bytes, atomic_write_json, sha256_bytes
from runtime.kernels.tiles import SMS

SOURCES = Path(__file__).parent / "csrc"
FOLDER = Path("build/kernels")  # where `make kernels` writes
UNITS = ("w4a8", "w8a8", "tokens")
PTX_VERSION = "7.0"
_USAGE = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


@dataclass(frozen=True)
class Usage:
    """What ptxas says of a kernel: registers a thread, bytes written to and read from spill space."""

    registers: int
    spill_stores: int
    spill_loads: int


def tool(name: str) -> str:
    """Where nvcc or ptxas is: on the PATH, or in /usr/local/cuda/bin.

    Raises:
        IntvitError: it is in neither.
    """
    found = shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")
    if found is None:
        raise IntvitError(
            f"there is no {name} here",
            why="neither on the PATH nor in /usr/local/cuda/bin",
            next="install the CUDA toolkit, 11.4 or later (JetPack brings it)",
        )
    return found


def version() -> str:
    """The line of ``nvcc --version`` that says which release it is."""
    return _done([tool("nvcc"), "--version"]).stdout.strip().splitlines()[-1]


def _done(command: list[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise IntvitError("the kernels do not compile", where=" ".join(command), why=said)
    return done


def source_hash() -> str:
    """The sha256 over the names and bytes of every file in csrc, sorted."""
    files = sorted(SOURCES.iterdir())
    return sha256_bytes(b"".join(path.name.encode() + b"\0" + path.read_bytes() for path in files))


def compile_ptx(unit: str) -> str:
    """One source file as PTX for SM 8.0 and above, labelled :data:`PTX_VERSION`.

    Raises:
        IntvitError: no nvcc, or it refuses the source.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / f"{unit}.ptx"
        _done([tool("nvcc"), "-std=c++17", "-arch=compute_80", "-ptx", "-o", str(out), str(SOURCES / f"{unit}.cu")])
        text = out.read_text("ascii")
    labelled, count = re.subn(r"^\.version \d+\.\d+$", f".version {PTX_VERSION}", text, flags=re.MULTILINE)
    if count != 1:
        raise IntvitError("the PTX has no version", where=f"{unit}.ptx", why="nvcc wrote no .version line")
    return labelled


def compile_cubin(ptx: str, unit: str, sm: str) -> tuple[bytes, dict[str, Usage]]:
    """Machine code of the PTX for one SM, such as "87", and what each kernel in it takes.

    Raises:
        IntvitError: no ptxas, or it refuses the PTX.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / f"{unit}.ptx", Path(folder) / f"{unit}.cubin"
        source.write_text(ptx, "ascii")
        done = _done([tool("ptxas"), "-v", f"-arch=sm_{sm}", "-o", str(out), str(source)])
        binary = out.read_bytes()
    found = {
        match["name"]: Usage(int(match["registers"]), int(match["stores"]), int(match["loads"]))
        for match in _USAGE.finditer(done.stdout + done.stderr)
    }
    return binary, found


def entry(ptx: str, name: str) -> str:
    """The PTX of one kernel out of a file's: what a plugin embeds instead of all of them.

    Raises:
        IntvitError: the file has no kernel of that name.
    """
    head, *kernels = re.split(r"^(?=\.visible \.entry )", ptx, flags=re.MULTILINE)
    for kernel in kernels:
        if kernel.startswith(f".visible .entry {name}("):
            body, end, _ = kernel.partition("\n}\n")
            return head + body + end
    raise IntvitError(f"the PTX has no kernel {name}", next="make kernels")


def build(out: Path, sms: tuple[str, ...] = SMS) -> dict[str, dict[str, Usage]]:
    """Write ``<unit>.ptx``, ``sm_<sm>/<unit>.cubin`` and ``kernels.json`` under ``out``. Returns the usage by SM."""
    usage: dict[str, dict[str, Usage]] = {sm: {} for sm in sms}
    for unit in UNITS:
        ptx = compile_ptx(unit)
        atomic_write_bytes(out / f"{unit}.ptx", ptx.encode("ascii"))
        for sm in sms:
            binary, found = compile_cubin(ptx, unit, sm)
            atomic_write_bytes(out / f"sm_{sm}" / f"{unit}.cubin", binary)
            usage[sm] |= found
    registers = {sm: {name: one.registers for name, one in found.items()} for sm, found in usage.items()}
    record = {"sources": source_hash(), "nvcc": version(), "ptx": PTX_VERSION, "registers": registers}
    atomic_write_json(out / "kernels.json", record)
    return usage


def require_built(folder: Path) -> None:
    """Make sure that ``folder`` is what :func:`build` made of these sources.

    Raises:
        IntvitError: nothing is built there, or something was built from other sources.
    """
    try:
        record = json.loads((folder / "kernels.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        why = f"no readable {folder / 'kernels.json'}"
        raise IntvitError("the kernels are not built", why=why, next="make kernels") from error
    if record.get("sources") != source_hash():
        raise IntvitError("the kernels were built from other sources", where=str(folder), next="make kernels")


def main(
    out: Annotated[Path, typer.Option("--out", help="The folder to write.")] = FOLDER,
    sm: Annotated[list[str] | None, typer.Option("--sm", help="Such as 87; again for more. Default: all.")] = None,
) -> None:
    """Compile the CUDA kernels ahead of time."""
    if unknown := [name for name in sm or () if name not in SMS]:
        raise IntvitError(f"no kernels for SM {unknown[0]!r}", where="--sm", next="known: " + ", ".join(SMS))
    for name, found in build(out, tuple(sm) if sm else SMS).items():
        spills = sum(one.spill_stores + one.spill_loads for one in found.values())
        most = max(one.registers for one in found.values())
        print(f"sm_{name}: {len(found)} kernels, at most {most} registers, {spills} bytes of spills")


if __name__ == "__main__":
    run(main)
