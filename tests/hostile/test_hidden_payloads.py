"""Payloads beside or behind the data of each container, where no list of names would look.

`reach` says how user code gets to each: torch_server.py does so in a scratch folder, where the
marker shows that the payload works. The gate fails each; what is built alike without a payload
passes.
"""

import bz2
import gzip
import io
import lzma
import pickletools
import struct
import tarfile
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from files import save_dcp
from hostile.pickles import MARKER, archive, blob, call, mapping, name, pickled, tensor, text
from safetensors.torch import save_file
from torch import nn

pytestmark = [
    pytest.mark.process,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
]

PAYLOAD = call(name("mailbox", "Maildir"), text(MARKER))
LINES = b"(V" + MARKER.encode() + b"\nimailbox\nMaildir\n."
"""The same as PAYLOAD in protocol 0: no PROTO, and no GLOBAL."""
BY_STACK = b"\x8c\x07mailbox\x8c\x07Maildir\x93(" + text(MARKER) + b"tR."
LONG_TEXT = b"X" + struct.pack("<I", 9000) + b"a" * 9000 + b"0"
HARMLESS = pickled(mapping(a=b"K\x01"))


class Acting:
    def __reduce__(self):
        import mailbox

        return mailbox.Maildir, (MARKER,)


def zipped(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as written:
        written.writestr("archive/data.pkl", content)
    return buffer.getvalue()


def tarred(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as written:
        member = tarfile.TarInfo("pickle")
        member.size = len(content)
        written.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def saved(content, **how) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **how)
    return buffer.getvalue()


def array_of_objects(content: object) -> bytes:
    buffer = io.BytesIO()
    array = np.empty(1, dtype=object)
    array[0] = content
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def latin1(content: bytes) -> bytes:
    """Return a byte string as protocol 2 writes it."""
    return call(name("_codecs", "encode"), text(content.decode("latin-1")), text("latin1"))


@dataclass(frozen=True)
class Hidden:
    """Bytes of an entry, how a reader runs them, and the same without a payload."""

    content: bytes
    reach: str
    twin: bytes | None = b"vocabulary\nof\ncats\n"


LEGACY = {"_use_new_zipfile_serialization": False}
BYTES = {
    "protocol 0, INST": Hidden(LINES, "unpickle", b"(some words\nin lines)\n"),
    "protocol 4 without PROTO": Hidden(BY_STACK, "unpickle"),
    "protocol 1 behind 9000 characters": Hidden(
        b"\x80\x01" + LONG_TEXT + PAYLOAD + b".", "unpickle", b"\x80\x01" + LONG_TEXT + b"N."
    ),
    "protocol 0 behind 9000 characters": Hidden(LONG_TEXT + LINES, "unpickle", LONG_TEXT + b"N."),
    "behind an encoding that no pickler writes": Hidden(
        pickled(call(name("_codecs", "encode"), text("a"), text("utf-8")) + b"0" + PAYLOAD),
        "unpickle",
        HARMLESS,
    ),
    "behind a state for a class": Hidden(
        pickled(name("decimal", "Decimal") + b"N}\x86b0" + PAYLOAD), "unpickle", HARMLESS
    ),
    "gzip": Hidden(
        gzip.compress(pickled(PAYLOAD), mtime=0), "gzip", b"\x1f\x8b is the magic of gzip"
    ),
    "zlib": Hidden(zlib.compress(pickled(PAYLOAD)), "zlib", struct.pack("<4q", 376, 1, 2, 3)),
    "bzip2": Hidden(bz2.compress(pickled(PAYLOAD)), "bz2", b"BZ are my initials"),
    "xz": Hidden(lzma.compress(pickled(PAYLOAD)), "lzma", b"xz are two letters"),
    "a zip behind a line of text": Hidden(b"#!/bin/sh\n" + zipped(pickled(PAYLOAD)), "zip"),
    "a tar": Hidden(tarred(pickled(PAYLOAD)), "tar", b"pickle".ljust(600, b" ")),
    "a numpy file of objects": Hidden(array_of_objects(Acting()), "numpy", b"\x93NUMPY is a word"),
    "a file of torch.save before 1.6": Hidden(
        saved({"a": Acting()}, **LEGACY), "torch", saved({"a": 1}, **LEGACY)
    ),
    "a second level of bytes": Hidden(
        pickled(call(name("pickle", "loads"), blob(LINES)), 3),
        "unpickle",
        pickled(blob(b"some words"), 3),
    ),
}


@pytest.mark.parametrize("kind", BYTES)
def test_a_byte_string(folder, run_gate, ask_torch, kind):
    hidden = BYTES[kind]
    path = archive(folder / "x.pth", pickled(mapping(w=tensor(), held=latin1(hidden.content))))
    assert ask_torch(path, "weights only")["loads"], "torch sees nothing in it"
    assert ask_torch(path, hidden.reach)["ran"]
    assert run_gate(path)[0] in {1, 2}
    twin = archive(folder / "twin.pth", pickled(mapping(w=tensor(), held=latin1(hidden.twin))))
    assert run_gate(twin)[0] == 0


TENSORS = [
    ("held", torch.uint8, (-1,), LINES, "unpickle"),
    ("held", torch.int8, (-1,), BY_STACK, "unpickle"),
    ("held", torch.uint8, (1, -1), pickled(PAYLOAD), "unpickle"),
    ("held", torch.uint8, (2, -1), LINES + b" " * (len(LINES) % 2), "unpickle"),
    ("held", torch.uint8, (-1,), gzip.compress(pickled(PAYLOAD), mtime=0), "gzip"),
    ("layer._extra_state", torch.float32, (-1,), pickled(PAYLOAD).ljust(64, b"\0"), "unpickle"),
    ("layer._extra_state", torch.int64, (2, -1), LINES.ljust(64, b"\0"), "unpickle"),
    ("layer._extra_state", torch.uint8, (-1,), zlib.compress(pickled(PAYLOAD)), "zlib"),
]


@pytest.mark.parametrize("write", ["pth", "safetensors"])
@pytest.mark.parametrize(("key", "dtype", "shape", "content", "reach"), TENSORS)
def test_a_tensor(folder, run_gate, ask_torch, write, key, dtype, shape, content, reach):
    def put(data: bytes) -> Path:
        held = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype).reshape(shape)
        path = folder / f"x.{write}"
        if write == "pth":
            torch.save({"w": torch.ones(2), key: held}, path)
        else:
            save_file({"w": torch.ones(2), key: held.contiguous()}, path, {"format": "pt"})
        return path

    path = put(content)
    assert ask_torch(path, reach)["ran"]
    assert run_gate(path)[0] in {1, 2}
    numbers = (torch.arange(len(content)) % 90).to(torch.uint8)
    assert run_gate(put(numbers.numpy().tobytes()))[0] == 0


def split_legacy() -> list[bytes]:
    """Return the pickles of a file before 1.6, and what follows them."""
    data = saved({"w": torch.ones(4)}, **LEGACY)
    parts, at = [], 0
    for _ in range(5):
        rest = io.BytesIO(data[at:])
        list(pickletools.genops(rest))
        parts.append(data[at : at + rest.tell()])
        at += rest.tell()
    return [*parts, data[at:]]


@pytest.mark.parametrize("part", range(5))
def test_a_pickle_before_or_behind_the_object(folder, run_gate, ask_torch, part):
    parts = split_legacy()
    path = folder / "x.pth"
    path.write_bytes(b"".join(parts))
    assert run_gate(path)[0] == 0
    parts[part] = pickled(PAYLOAD + b"0" + parts[part][2:-1])
    path.write_bytes(b"".join(parts))
    assert ask_torch(path, "everything")["ran"]
    assert run_gate(path)[0] in {1, 2}


@pytest.mark.parametrize("record", [LINES, BY_STACK, LONG_TEXT + LINES])
def test_a_record_beside_the_storages(folder, run_gate, ask_torch, record):
    path = archive(folder / "x.pth", pickled(mapping(w=tensor())), extra=record)
    assert ask_torch(path, "weights only")["loads"]
    assert ask_torch(path, "record")["ran"]
    assert run_gate(path)[0] in {1, 2}
    twin = archive(
        folder / "twin.pth", pickled(mapping(w=tensor())), extra=b"some words\nof text\n"
    )
    assert run_gate(twin)[0] == 0


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return x * self.w


@pytest.mark.parametrize("record", [LINES, BY_STACK, LONG_TEXT + LINES])
def test_an_extra_file_of_torchscript(folder, run_gate, ask_torch, record):
    path = folder / "x.pt"
    torch.jit.save(torch.jit.script(Scaled()), path, {"note": b"some words"})
    assert run_gate(path)[0] == 0
    torch.jit.save(torch.jit.script(Scaled()), path, {"note": record})
    assert ask_torch(path, "script")["loads"]
    assert ask_torch(path, "record")["ran"]
    assert run_gate(path)[0] in {1, 2}


def set_planner_data(metadata) -> None:
    metadata.planner_data = {("a",): Acting()}


def set_storage_meta(metadata) -> None:
    metadata.storage_meta = Acting()


def set_another_attribute(metadata) -> None:
    metadata.note = Acting()


@pytest.mark.parametrize("change", [set_planner_data, set_storage_meta, set_another_attribute])
def test_the_metadata_of_a_distributed_checkpoint(
    folder, run_gate, ask_torch, change: Callable[[object], None]
):
    import pickle

    path = save_dcp({"w": torch.ones(4), "epoch": {"n": [1]}}, folder / "dcp")
    assert run_gate(path)[0] == 0
    metadata = pickle.loads((path / ".metadata").read_bytes())
    change(metadata)
    (path / ".metadata").write_bytes(pickle.dumps(metadata))
    assert ask_torch(path, "dcp")["ran"]
    assert run_gate(path)[0] in {1, 2}


def attach(held: torch.Tensor) -> torch.Tensor:
    weight = nn.Parameter(torch.ones(2))
    weight.note = held
    return weight


def put_in_metadata(held: torch.Tensor) -> dict:
    state = OrderedDict(w=torch.ones(2))
    state._metadata = OrderedDict({"": {"version": 1, "note": held}})
    return state


def spread(held: torch.Tensor) -> torch.Tensor:
    wide = torch.zeros(2 * held.numel(), dtype=held.dtype)
    wide[::2] = held
    return wide[::2]


WAYS_TO_HOLD = {
    "a transposed tensor": (
        lambda held: {"x": held.reshape(8, -1).t().contiguous().t()},
        lambda content: content["x"],
    ),
    "every second element": (lambda held: {"x": spread(held)}, lambda content: content["x"]),
    "an expanded tensor": (lambda held: {"x": held.expand(3, -1)}, lambda content: content["x"][0]),
    "bool": (lambda held: {"x": held.view(torch.bool)}, lambda content: content["x"]),
    "a quantised tensor": (
        lambda held: {"x": torch._make_per_tensor_quantized_tensor(held, 1.0, 0)},
        lambda content: content["x"].int_repr(),
    ),
    "values of a sparse tensor": (
        lambda held: {"x": held.to_sparse()},
        lambda content: content["x"].to_dense(),
    ),
    "an attribute of a parameter": (
        lambda held: {"w": attach(held)},
        lambda content: content["w"].note,
    ),
    "_metadata": (put_in_metadata, lambda content: content._metadata[""]["note"]),
    "a bare storage": (
        lambda held: {"w": torch.ones(2), "x": held.storage()},
        lambda content: torch.tensor(content["x"].untyped(), dtype=torch.uint8),
    ),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("way", WAYS_TO_HOLD)
def test_bytes_that_are_no_adjacent_tensor_of_a_state(folder, run_gate, way, zipped):
    """Bytes were searched only where a tensor of uint8 in a state_dict has adjacent elements."""
    put, get = WAYS_TO_HOLD[way]
    nbytes = -(-len(pickled(PAYLOAD)) // 8) * 8
    data = pickled(PAYLOAD).ljust(nbytes, b"\1")
    for content, expected in ((data, 1), (bytes(range(nbytes)), 0)):
        held = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        torch.save(put(held), "x.pth", _use_new_zipfile_serialization=zipped)
        loaded = get(torch.load("x.pth", weights_only=False))
        assert loaded.contiguous().view(torch.uint8).numpy().tobytes()[: len(data)] == content
        code, output = run_gate("x.pth")
        assert code == expected, output


def test_a_nested_tensor_before_1_6_is_refused_as_torch_refuses_it(folder, run_gate, ask_torch):
    """Sizes are read after it is built, so that torch fails, and the gate passed it."""
    nested = torch.nested.nested_tensor([torch.ones(3), torch.ones(2)])
    torch.save({"x": nested}, "x.pth", **LEGACY)
    assert not ask_torch(folder / "x.pth", "everything")["loads"]
    assert run_gate("x.pth")[0] == 1
    torch.save({"x": nested}, "x.pth")
    assert ask_torch(folder / "x.pth", "everything")["loads"]
    assert run_gate("x.pth")[0] == 0
