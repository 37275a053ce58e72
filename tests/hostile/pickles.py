"""Bytes of pickles and zip archives, written by hand: what no library would write."""

import struct
import zipfile
import zlib
from pathlib import Path

MARKER = "HOSTILE_MARKER"


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


def raw_archive(entries: list[dict], **end) -> bytes:
    """Return a zip archive; `entries` have name, data, and any field of either header.

    `extra` and `local_extra` are the extra fields, `size`, `local_size`, `disk`, `attributes`,
    `offset`, `flags` and `crc` what the headers say; `end` has `disk`, `start_disk`, `comment`.
    """
    out, directory = b"", b""
    for entry in entries:
        key, data = entry["name"].encode(), entry["data"]
        crc, size = entry.get("crc", zlib.crc32(data)), entry.get("size", len(data))
        local_size, local_extra = entry.get("local_size", size), entry.get("local_extra", b"")
        at = entry.get("offset", len(out))
        out += struct.pack(
            "<4s5H3L2H", b"PK\3\4", 0, entry.get("flags", 0), 0, 0, 0,
            crc, local_size, local_size, len(key), len(local_extra),
        ) + key + local_extra + data  # fmt: skip
        extra = entry.get("extra", b"")
        directory += struct.pack(
            "<4s6H3L5H2L", b"PK\1\2", 0, 0, entry.get("flags", 0), 0, 0, 0, crc, size, size,
            len(key), len(extra), 0, entry.get("disk", 0), 0, entry.get("attributes", 0), at,
        ) + key + extra  # fmt: skip
    comment = end.get("comment", b"")
    record = struct.pack(
        "<4s4H2LH", b"PK\5\6", end.get("disk", 0), end.get("start_disk", 0),
        end.get("count", len(entries)), end.get("total", len(entries)),
        len(directory), len(out), len(comment),
    )  # fmt: skip
    return out + directory + record + comment


def entries(pickle: bytes, data: bytes = bytes(range(16)), folder: str = "archive") -> list[dict]:
    """Return the entries of a file of torch.save, for `raw_archive`."""
    members = {"data.pkl": pickle, "byteorder": b"little", "data/0": data, "version": b"3\n"}
    return [{"name": f"{folder}/{key}", "data": value} for key, value in members.items()]
