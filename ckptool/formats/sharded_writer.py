"""New and unchanged shards -> sharded folder; the index is written last."""

import errno
import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ckptool.formats.blobs import Progress, Sink
from ckptool.formats.files import Source, open_source
from ckptool.locations import Location
from ckptool.model import Span, natural

INDEX: Final = "model.safetensors.index.json"
_CLONE: Final = 0x40049409
"""ioctl FICLONE: copy-on-write clone, on file systems that support it."""
_NOT_SHARED: Final = frozenset(
    {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL,
     errno.ENOTTY}
)  # fmt: skip
"""errno values of file systems that cannot hard-link or clone."""


def keep(shard: Location, place: Path, progress: Progress, *, link: bool = True) -> str:
    """Put an unchanged file at `target`; return "linked", "cloned" or "copied".

    Tries a hard link (both names are the same file), then a copy-on-write clone, then a copy.
    """
    if link and isinstance(shard, Path) and _linked(shard, place):
        return "linked"
    descriptor = create(place)
    try:
        return _copied(shard, descriptor, place, progress)
    finally:
        os.close(descriptor)


def create(place: Path) -> int:
    """Create a file; return its descriptor, for a FileWriter.

    Raises:
        FileExistsError: it exists already.
    """
    return os.open(place, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def write_index(place: Path, weight_map: Mapping[str, str], metadata: Mapping[str, object]) -> None:
    """Write the index, keys in natural order, and flush it to disk."""
    ordered = {key: weight_map[key] for key in sorted(weight_map, key=natural)}
    text = json.dumps({"metadata": dict(metadata), "weight_map": ordered}, indent=2)
    descriptor = create(place)
    try:
        with Sink(place, descriptor, lambda _: None) as sink:
            sink.write(f"{text}\n".encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _linked(shard: Path, place: Path) -> bool:
    try:
        # Resolve symbolic links: hub caches consist of them.
        place.hardlink_to(shard.resolve())
    except OSError as error:
        if error.errno not in _NOT_SHARED:
            raise
        return False
    return True


def _copied(shard: Location, descriptor: int, place: Path, progress: Progress) -> str:
    with open_source(shard) as source:
        if not source.remote and _cloned(source, descriptor):
            return "cloned"
        span = Span(shard, 0, source.nbytes)
    with Sink(place, descriptor, progress) as sink:
        sink.copy(span)
    os.fsync(descriptor)
    return "copied"


def _cloned(source: Source, descriptor: int) -> bool:
    try:
        fcntl.ioctl(descriptor, _CLONE, source.fileno())
    except OSError as error:
        if error.errno not in _NOT_SHARED:
            raise
        return False
    return True
