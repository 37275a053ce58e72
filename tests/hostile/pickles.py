"""Bytes of pickles, written by hand: what no library would write."""

import struct
import zipfile
from pathlib import Path

MARKER = "HOSTILE_MARKER"
TRUE, FALSE, NONE = b"\x88", b"\x89", b"N"


def name(module: str, attribute: str) -> bytes:
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def text(content: str) -> bytes:
    data = content.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def blob(content: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(content)) + content


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def group(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def listed(*items: bytes) -> bytes:
    return b"](" + b"".join(items) + b"e"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + group(*arguments) + b"R"


def mapping(**items: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def pickled(body: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + body + b"."


def storage(kind: str = "FloatStorage", numel: int = 4, location: str = "cpu") -> bytes:
    parts = (text("storage"), name("torch", kind), text("0"), text(location), number(numel))
    return group(*parts) + b"Q"


HOOKS = name("collections", "OrderedDict") + b")R"


def tensor(
    *extra: bytes, grad: bytes = b"\x89", function: str = "_rebuild_tensor_v2", **how
) -> bytes:
    """Return a tensor [4] whose rebuild call has `extra` arguments behind the usual six."""
    parts = (storage(**how), number(0), group(number(4)), group(number(1)), grad, HOOKS, *extra)
    return call(name("torch._utils", function), *parts)


def rebuilt(function: str, *arguments: bytes) -> bytes:
    return call(name("torch._utils", function), *arguments)


def archive(path: Path, pickle: bytes, data: bytes = bytes(16), **records: bytes) -> Path:
    """Write a file of torch.save with this data.pkl; `records` are further ones, by name."""
    members = {
        "data.pkl": pickle,
        "byteorder": b"little",
        "data/0": data,
        "version": b"3\n",
        **{key.replace("__", "/"): value for key, value in records.items()},
    }
    with zipfile.ZipFile(path, "w") as written:
        for key, value in members.items():
            written.writestr(zipfile.ZipInfo(f"archive/{key}"), value)
    return path
