"""Folder of a merged model -> the same, with the record of its origin in the weights' metadata."""

import json
import shutil
from pathlib import Path
from typing import Final

from ckptool.locations import mask_credentials
from ckptool.migration.write.provenance import PROVENANCE_KEY, MigrationDigests
from ckptool.versions import get_installed_version

_LENGTH_BYTES: Final = 8
_ALIGNMENT: Final = 8
_PROTO_OPCODE: Final = 0x80
"""First byte that a pickle has: the length of a header must not begin with it."""


def format_merge_record(
    adapter_name: str, base_name: str, base_digest: str, digests: MigrationDigests
) -> str:
    """Return the record as JSON. It has no paths, times or credentials: runs are reproducible."""
    record = {
        "tool": f"ckptool {get_installed_version('ckptool')}",
        "source": {"name": adapter_name, "digest": digests.source},
        "merged_into": {"name": base_name, "digest": base_digest},
        "merged_by": f"peft {get_installed_version('peft')}",
        "result": {"digest": digests.result},
    }
    return mask_credentials(json.dumps(record, ensure_ascii=True))


def add_merge_record(folder: Path, weights_name: str, record: str) -> None:
    """Write the record into the metadata of the index, or of the one safetensors file.

    Raises:
        OSError: it cannot be written.
    """
    path = folder / weights_name
    if path.suffix == ".json":
        index = json.loads(path.read_bytes())
        index.setdefault("metadata", {})[PROVENANCE_KEY] = record
        path.write_text(json.dumps(index, indent=2) + "\n")
    else:
        _add_header_entry(path, record)


def _add_header_entry(path: Path, record: str) -> None:
    pending_path = path.with_name(f".{path.name}.pending")
    with path.open("rb") as source, pending_path.open("wb") as target:
        header = json.loads(source.read(int.from_bytes(source.read(_LENGTH_BYTES), "little")))
        header.setdefault("__metadata__", {})[PROVENANCE_KEY] = record
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        length = len(text) + -len(text) % _ALIGNMENT
        length += _ALIGNMENT if length & 0xFF == _PROTO_OPCODE else 0
        target.write(length.to_bytes(_LENGTH_BYTES, "little") + text.ljust(length))
        shutil.copyfileobj(source, target, 1 << 22)
    pending_path.replace(path)
