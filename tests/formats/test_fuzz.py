"""Mutants of valid files: whatever the bytes, a Checkpoint or an error of ours, and nothing else.

CKPTOOL_FUZZ is the number of mutants (8,000 in CI, 1,000 elsewhere, hours if you like) and
CKPTOOL_SEED the number that they start from; a failure names the mutant's number and what it was
made of. CKPTOOL_FUZZ_COMMANDS=1 gives every mutant to a command: `inspect`, `gate` or `diff`.

Payloads are mutated as well: where a gate passes, an independent reader (pickletools) must have
found no name in the pickle that torch.load(weights_only=True) refuses.
"""

import _compat_pickle
import contextlib
import io
import json
import os
import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
import torch
from archives import extract_tar
from click.testing import CliRunner
from containers import safetensors_bytes, write
from paths import IS_CI, ROOT

from ckptool.cli import main
from ckptool.errors import CkptoolError
from ckptool.formats import open_checkpoint
from ckptool.formats.pickle.safe_globals import SAFE_GLOBALS
from ckptool.model import Checkpoint
from ckptool.values.elements import unreadable_reason

CORPUS = ROOT / "tests" / "corpus"
MUTANTS = int(os.environ.get("CKPTOOL_FUZZ", "8000" if IS_CI else "1000"))
FIRST = int(os.environ.get("CKPTOOL_SEED", "0"))
THROUGH_THE_COMMAND = int(os.environ.get("CKPTOOL_FUZZ_COMMANDS", "10"))
"""One mutant in as many is given to the command as well, which renders what was read."""

EDGES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
EDGES += [(1 << 63) - 1, 1 << 63, (1 << 64) - 1]
TOKENS = [b"0", b".", b"(", b"{", b"[", b'"', b"\\", b"\0", b"\x80", b"\xff", b"\n", b"-1", b"null"]
TOKENS += [b"}", b")", b"]", b"N", b"t", b"R", b"b", b"e", b"s", b"u", b"a", b"d", b"l", b"o", b"2"]
TOKENS += [b"K\0", b"h\0", b"h\1", b"q\0", b"U\1x", b"C\1x", b"\x85", b"\x86", b"\x87", b"\x88"]
TOKENS += [
    b"\x8f",
    b"\x90",
    b"\x91",
    b"\x92",
    b"\x93",
    b"\x94",
    b"\x81",
    b"Q",
    b"I1\n",
    b"G" + bytes(8),
]
"""Punctuation of JSON, and opcodes of pickles."""
_SCRIPT_MODULES = ("__torch__", "torch.jit._pickle")
"""Modules that TorchScript's own pickles name: the code in the archive, and its builders."""


@dataclass(frozen=True)
class Seed:
    """Valid bytes to mutate, and what makes a file, or a folder of files, of them again."""

    name: str
    content: bytes
    put: Callable[[Path, bytes], Path]


@pytest.fixture(scope="session")
def seeds(tmp_path_factory) -> list[Seed]:
    folder = tmp_path_factory.mktemp("seeds")
    extract_tar(CORPUS / "dev.tar.xz", folder)
    cases = json.loads((CORPUS / "manifest.json").read_text())["cases"]
    wanted = {"accept", "flag-unsafe"}
    valid = [(c["name"], folder / c["path"]) for c in cases if c["expect"] in wanted]
    files = [(name, path.read_bytes()) for name, path in valid if path.is_file()]
    found = [Seed(name, content, as_file) for name, content in files if len(content) < 1 << 16]
    for name, content in files:
        found += _inside(name, content)
    for name, path in valid:
        if path.is_dir():
            found += _beside(name, path)
    assert len(found) > 60
    return found


def as_file(folder: Path, content: bytes) -> Path:
    return write(folder, {"mutant": content}) / "mutant"


def _inside(name: str, content: bytes) -> list[Seed]:
    """Return what a container wraps: with its sums and lengths right, a mutant gets further in."""
    if content[8:9] == b"{" and len(content) < 1 << 16:
        start = 8 + int.from_bytes(content[:8], "little")
        return [Seed(f"{name}:header", content[8:start], _with_data(content[start:]))]
    if not content.startswith(b"PK") or len(content) > 1 << 16:
        return []
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            held = {info.filename: archive.read(info) for info in archive.infolist()}
    except zipfile.BadZipFile:
        return []  # saved without checksums, which torch may do
    small = [name for name, data in held.items() if "/data/" not in name and len(data) > 8]
    return [Seed(f"{name}:{member}", held[member], _in_zip(held, member)) for member in small]


def _with_data(data: bytes) -> Callable[[Path, bytes], Path]:
    return lambda folder, header: as_file(folder, safetensors_bytes(header, data))


def _in_zip(held: dict[str, bytes], changed: str) -> Callable[[Path, bytes], Path]:
    def put(folder: Path, content: bytes) -> Path:
        path = write(folder, {}) / "mutant"
        with zipfile.ZipFile(path, "w") as archive:
            for member, data in {**held, changed: content}.items():
                archive.writestr(member, data)
        return path

    return put


def _beside(name: str, checkpoint: Path) -> list[Seed]:
    """Return each file of a folder, which keeps the others as they are."""
    held = {path.name: path.read_bytes() for path in checkpoint.iterdir()}

    def within(changed: str) -> Callable[[Path, bytes], Path]:
        return lambda folder, content: write(folder / name, {**held, changed: content})

    return [Seed(f"{name}:{file}", content, within(file)) for file, content in held.items()]


def mutant(random: Random, content: bytes, other: bytes) -> bytes:
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 4, 16))):
        if data:
            random.choice(MUTATIONS)(random, data, random.randrange(len(data)), other)
    return bytes(data)


def flip(random: Random, data: bytearray, at: int, _other: bytes) -> None:
    data[at] ^= 1 << random.randrange(8)


def token(random: Random, data: bytearray, at: int, _other: bytes) -> None:
    new = random.choice(TOKENS)
    data[at : at + len(new)] = new


def number(random: Random, data: bytearray, at: int, _other: bytes) -> None:
    width = random.choice((1, 2, 4, 8))
    edge = random.choice(EDGES) & ((1 << 8 * width) - 1)
    data[at : at + width] = edge.to_bytes(width, random.choice(("little", "big")))


def digits(random: Random, data: bytearray, at: int, _other: bytes) -> None:
    data[at:at] = str(random.choice(EDGES)).encode()


def insert(random: Random, data: bytearray, at: int, _other: bytes) -> None:
    data[at:at] = random.choice(TOKENS)


def cut(random: Random, data: bytearray, at: int, _other: bytes) -> None:
    del data[at : random.choice((at + 1, at + random.randrange(1, 64), len(data)))]


def repeat(random: Random, data: bytearray, at: int, _other: bytes) -> None:
    data[at:at] = data[at : at + random.randrange(1, 64)] * random.choice((1, 1, 2, 100))


def splice(random: Random, data: bytearray, at: int, other: bytes) -> None:
    start = random.randrange(len(other)) if other else 0
    data[at : at + 32] = other[start : start + 32]


def swap(random: Random, data: bytearray, at: int, _other: bytes) -> None:
    to = random.randrange(len(data))
    data[at], data[to] = data[to], data[at]


MUTATIONS = [flip, token, insert, number, digits, cut, repeat, splice, swap]


def test_mutants(seeds, tmp_path):
    for n in range(FIRST, FIRST + MUTANTS):
        random = Random(n)
        seed, other = random.choice(seeds), random.choice(seeds)
        path = seed.put(tmp_path, mutant(random, seed.content, other.content))
        try:
            _describe(path)
            if n % THROUGH_THE_COMMAND == 0:
                _command(random, path, tmp_path)
        except Exception as error:
            kept = Path(f"{tmp_path}-kept-{n}")
            path.rename(kept)
            raise AssertionError(f"mutant {n} of {seed.name}, kept as {kept}: {error!r}") from error


def _describe(path: Path) -> None:
    """Read it, and look at everything that the next stages look at."""
    try:
        checkpoint = open_checkpoint(path)
    except CkptoolError:
        return
    assert isinstance(checkpoint, Checkpoint)
    for state in checkpoint.states:
        for tensor in (*state.tensors.values(), *state.unsaved_tensors.values()):
            assert tensor.nbytes >= 0
            assert isinstance(unreadable_reason(tensor), str)
            if tensor.span is not None:
                assert tensor.span.offset + tensor.span.nbytes <= tensor.span.path.stat().st_size


def _command(random: Random, path: Path, folder: Path) -> None:
    valid = folder / "valid.pth"
    if not valid.exists():
        torch.save({"w": torch.ones(2, 3), "b": torch.zeros(3)}, valid)
    words = random.choice(
        [
            ["inspect", str(path)],
            ["gate", "--no-values", str(path)],
            ["diff", str(valid), str(path)],
        ]
    )
    result = CliRunner().invoke(main, words)
    assert result.exit_code in {0, 1, 2}
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "\x1b" not in result.output
    if words[0] == "gate" and result.exit_code == 0:
        assert _names_by_pickletools(path) <= SAFE_GLOBALS


def _names_by_pickletools(path: Path) -> set[tuple[str, str]]:
    """Return the names in a file's own pickle, as far as pickletools can follow it."""
    if not path.is_file():
        return set()
    data = path.read_bytes()
    if data.startswith(b"PK"):
        data = b""
        # zipfile refuses what it does not know: a version of 9.0, encryption.
        refusals = (zipfile.BadZipFile, NotImplementedError, RuntimeError)
        with contextlib.suppress(*refusals), zipfile.ZipFile(path) as archive:
            found = [n for n in archive.namelist() if n.rpartition("/")[2] == "data.pkl"]
            data = archive.read(found[0]) if found else b""
    elif data[8:9] == b"{":
        return set()
    names: set[tuple[str, str]] = set()
    strings: list[str] = []
    with contextlib.suppress(ValueError, IndexError, UnicodeError):
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in {"GLOBAL", "INST"}:
                module, _, name = argument.partition(" ")
                names.add((_in_python_3(module, name), name))
            elif opcode.name == "STACK_GLOBAL":
                names.add((strings[-2], strings[-1]))
            elif isinstance(argument, str):
                strings.append(argument)
    return {(module, name) for module, name in names if not module.startswith(_SCRIPT_MODULES)}


def _in_python_3(module: str, name: str) -> str:
    """Return the module of today: protocol 2 writes `__builtin__` for `builtins`."""
    renamed = _compat_pickle.NAME_MAPPING.get((module, name))
    return renamed[0] if renamed else _compat_pickle.IMPORT_MAPPING.get(module, module)
