"""Bytes of small containers, written by hand: what a library would refuse to write."""

import json
from pathlib import Path

ENTRY = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
DATA = bytes(range(16))


def safetensors_bytes(header: dict | bytes | str, data: bytes = DATA, length: int | None = None):
    """Return a safetensors file; `header` that is no dict is written as it is."""
    if isinstance(header, dict):
        header = json.dumps(header)
    if isinstance(header, str):
        header = header.encode()
    size = len(header) if length is None else length
    return size.to_bytes(8, "little") + header + data


def entry(**fields) -> dict:
    return {**ENTRY, **fields}


def write(folder: Path, files: dict[str, bytes | str]) -> Path:
    """Write `files` into `folder`, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def index_json(**weight_map: str) -> str:
    return json.dumps({"metadata": {"total_size": 32}, "weight_map": weight_map})
