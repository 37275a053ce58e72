"""Records of a zip archive that are neither pickles nor tensors -> content fingerprints."""

from collections.abc import Iterable
from typing import Final

from ckptool.errors import CorruptCheckpointError
from ckptool.formats.contents.collector import (
    UNKNOWN_CONTENT,
    ContentCollector,
    create_content_hasher,
)
from ckptool.formats.files.source import ByteSource
from ckptool.formats.limits import Limits
from ckptool.formats.zip.archive import ZipMember, read_member

_MAX_BYTES: Final = 256 << 20
"""Bytes of all such records of one file that are read."""
_MAX_REMOTE_BYTES: Final = 16 << 20


def add_record_contents(
    collector: ContentCollector,
    source: ByteSource,
    members: Iterable[tuple[str, ZipMember]],
    limits: Limits,
) -> None:
    """Add (name, member) records; one that is too large, or cannot be inflated, is unknown."""
    remaining = _MAX_REMOTE_BYTES if source.is_remote else _MAX_BYTES
    for name, member in members:
        fingerprint = UNKNOWN_CONTENT
        if member.data_offset >= 0 and member.nbytes <= remaining:
            remaining -= member.nbytes
            try:
                data = read_member(source, member, limits, member.nbytes)
                fingerprint = create_content_hasher(data).hexdigest()
            except CorruptCheckpointError:
                pass
        collector.add(f"record {name}", fingerprint)
