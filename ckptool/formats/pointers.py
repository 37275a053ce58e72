"""First bytes of a file -> description of its format, for files that are no checkpoint."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from ckptool.errors import CorruptCheckpointError
from ckptool.formats.limits import DEFAULT
from ckptool.formats.strict_json import decode, quoted

HEAD_BYTES: Final = 1 << 16
"""Bytes read to identify a format; pointer files (git-LFS, DVC ...) are smaller."""

_FEW: Final = 3
_PACKED: Final = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")


def foreign(head: bytes) -> str:
    """Return a description of the file if its format is known and no checkpoint; else ""."""
    if not head:
        return "is empty: 0 bytes"
    for magic, text in _MAGIC.items():
        if head.startswith(magic):
            return text
    if _ONNX.match(head):
        return "is an ONNX model, not a PyTorch checkpoint"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return next((found for read in _POINTERS if (found := read(start))), "")


def leftover(head: bytes) -> str:
    """Return a description of a file that no reader recognises."""
    if not head.strip(b"\0"):
        return "holds zeros only: a download or a copy that was never filled"
    if head[8:9] == b"{":
        length = int.from_bytes(head[:8], "little")
        return f"starts as a safetensors file whose header has {length} bytes: it is damaged"
    if _is_text(head):
        first = head.split(b"\n", 1)[0].decode("utf-8", "replace").strip()
        return f"is text, not a checkpoint; it begins {quoted(first)}"
    return f"is no checkpoint that ckptool knows; it begins with the bytes {head[:8].hex(' ')}"


def archive(names: Iterable[str]) -> str:
    """Return a description of a zip archive not written by torch.save, with a remedy if known."""
    inside = sorted(names)
    if inside and all(name.endswith(".npy") for name in inside):
        return "is a NumPy archive (.npz), not a PyTorch checkpoint: numpy.load reads it"
    if any(name.endswith(".data/extern_modules") for name in inside):
        return (
            "is a torch.package archive: load it with torch.package.PackageImporter, and save "
            "the module's state_dict()"
        )
    files = [quoted(name) for name in inside if name.lower().endswith(_PACKED)]
    if files:
        more = f" and {len(files) - 3} more" if len(files) > 3 else ""
        return f"is a zip archive with {', '.join(files[:3])}{more} inside: unpack it first"
    if any(name.rpartition("/")[2] == "serialization_id" for name in inside):
        return (
            "torch.save began it and wrote no data.pkl: it raised, as it does for a module with "
            "parametrizations: save its state_dict() instead"
        )
    return "a zip archive without data.pkl: torch.save did not write it"


def _compressed(name: str, command: str) -> str:
    return f"is compressed ({name}); unpack it first: {command}"


_MAGIC: Final = {
    b"\x1f\x8b": _compressed("gzip", "gzip -d"),
    b"BZh": _compressed("bzip2", "bzip2 -d"),
    b"\xfd7zXZ\0": _compressed("xz", "xz -d"),
    b"\x28\xb5\x2f\xfd": _compressed("zstd", "zstd -d"),
    b"\x04\x22\x4d\x18": _compressed("lz4", "lz4 -d"),
    b"7z\xbc\xaf\x27\x1c": _compressed("7z", "7z x"),
    b"Rar!\x1a\x07": _compressed("rar", "unrar x"),
    b"GGUF": "is a GGUF file, not a PyTorch checkpoint; llama.cpp's tools read it",
    b"lmgg": "is a GGML file, not a PyTorch checkpoint; llama.cpp's tools read it",
    b"tjgg": "is a GGML file, not a PyTorch checkpoint; llama.cpp's tools read it",
    b"\x89HDF\r\n\x1a\n": "is an HDF5 file (Keras, h5py), not a PyTorch checkpoint",
    b"\x93NUMPY": "is one numpy array (.npy), not a PyTorch checkpoint",
    b"%PDF": "is a PDF document, not a checkpoint",
    b"\x7fELF": "is a program, not a checkpoint",
}
_ONNX: Final = re.compile(rb"\x08[\x01-\x20]\x12[\x01-\x40][ -~]{2}")
_LFS: Final = re.compile(rb"version https://git-lfs\.github\.com/spec/v\d")
_LFS_OID: Final = re.compile(rb"^oid sha256:([0-9a-f]{64})\r?$", re.MULTILINE)
_SIZE: Final = re.compile(rb"^[ -]*size:? (\d{1,20})\r?$", re.MULTILINE)
_ANNEX: Final = re.compile(rb"/annex/objects/[^\s/]+\s*$")
_DVC: Final = re.compile(rb"^(?:- |  )(?:md5|etag|checksum|hash): ", re.MULTILINE)
_DVC_MD5: Final = re.compile(rb"^[ -]*md5: ([0-9a-f]{32}(?:\.dir)?)\r?$", re.MULTILINE)
_DVC_PATH: Final = re.compile(rb"^[ -]*path: (.+?)\r?$", re.MULTILINE)
_ERROR_CODE: Final = re.compile(rb"<Code>(\w{1,40})</Code>")
_DIGEST: Final = re.compile(r"sha\d{3}:[0-9a-f]{64,128}")


def _lfs(start: bytes) -> str:
    if not _LFS.match(start):
        return ""
    facts = _facts(size=_first(_SIZE, start), sha256=_first(_LFS_OID, start))
    return f"is a git-LFS pointer{facts}, not the file itself: run `git lfs pull`"


def _annex(start: bytes) -> str:
    if not _ANNEX.match(start):
        return ""
    return "is a git-annex pointer, not the file itself: run `git annex get` on it"


def _dvc(start: bytes) -> str:
    if b"outs:" not in start or not _DVC.search(start):
        return ""
    facts = _facts(size=_first(_SIZE, start), md5=_first(_DVC_MD5, start))
    path = _first(_DVC_PATH, start)
    target = f" to {quoted(path)}" if path else ""
    return f"is a DVC pointer{target}{facts}: run `dvc pull`, then name the file it points to"


def _web(start: bytes) -> str:
    begin = start[:64].lower()
    if begin.startswith((b"<!doctype html", b"<html", b"<head", b"<script")):
        return "is an HTML page: the download gave an error or a log-in page, not the file"
    if begin.startswith(b"<?xml") or (begin.startswith(b"<error") and b"<Code>" in start):
        code = _first(_ERROR_CODE, start)
        return (
            f"is XML{f' ({code})' if code else ''}: the server's answer to a download, not the file"
        )
    return ""


def _json(start: bytes) -> str:
    if not start.startswith(b"{"):
        return ""
    try:
        value, _ = decode(Path(), start, DEFAULT, "it")
    except CorruptCheckpointError:
        return ""
    if "schemaVersion" in value and ("mediaType" in value or "config" in value):
        return _oci(value)
    if said := _refusal(value):
        return f"is a server's answer to a download ({said}), not the file"
    keys = ", ".join(quoted(key) for key in list(value)[:_FEW])
    return f"is a JSON file{f' with {keys}' if keys else ''}: name the checkpoint it goes with"


def _refusal(value: dict[str, Any]) -> str:
    """Return the quoted error message of a web service's JSON response, or ""."""
    if len(value) > _FEW:
        return ""
    texts = (value.get(key) for key in ("error", "message", "detail", "errors"))
    return next((quoted(text) for text in texts if isinstance(text, str)), "")


def _oci(manifest: dict[str, Any]) -> str:
    blobs = manifest.get("layers", manifest.get("manifests"))
    named = (
        [_blob(blob) for blob in blobs if isinstance(blob, dict)] if isinstance(blobs, list) else []
    )
    what = "index" if "manifests" in manifest else "manifest"
    more = f" and {len(named) - _FEW} more" if len(named) > _FEW else ""
    of = f" of {', '.join(named[:_FEW])}{more}" if named else ""
    return f"is an OCI {what}{of}, not the file itself: fetch it with `oras pull`"


def _blob(blob: dict[str, Any]) -> str:
    digest, size = blob.get("digest"), blob.get("size")
    known = isinstance(digest, str) and _DIGEST.fullmatch(digest)
    return f"{digest if known else 'a blob'}" + (f" ({size} bytes)" if type(size) is int else "")


_POINTERS: Final = (_lfs, _annex, _dvc, _web, _json)


def _first(pattern: re.Pattern[bytes], text: bytes) -> str:
    found = pattern.search(text)
    return found[1].decode("utf-8", "replace") if found else ""


def _facts(size: str, **digest: str) -> str:
    """Return " (12 bytes, sha256 ...)" from the non-empty values; "" if all are empty."""
    known = [f"{size} bytes"] if size else []
    known += [f"{name} {value}" for name, value in digest.items() if value]
    return f" ({', '.join(known)})" if known else ""


def _is_text(head: bytes) -> bool:
    """Whether `head` is printable UTF-8; its last character may be truncated."""
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:
            return False
        text = head[: error.start].decode()
    return all(c.isprintable() or c in "\t\n\r\f" for c in text)
