"""New and unchanged shards -> sharded folder; the index is written last."""

import errno
import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ckptool.formats.files.source import ByteSource, open_source
from ckptool.formats.files.writer import FileWriter, ProgressCallback
from ckptool.locations import Location
from ckptool.model import Span, natural_sort_key

INDEX_NAME: Final = "model.safetensors.index.json"
_FICLONE: Final = 0x40049409
"""ioctl FICLONE: copy-on-write clone, on file systems that support it."""
_UNSUPPORTED_LINK_ERRNOS: Final = frozenset(
    {errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL,
     errno.ENOTTY}
)  # fmt: skip
"""errno values of file systems that cannot hard-link or clone."""


def link_or_copy_file(
    path: Location, target: Path, progress: ProgressCallback, *, link: bool = True
) -> str:
    """Put an unchanged file at `target`; return "linked", "cloned" or "copied".

    Tries a hard link (both names are the same file), then a copy-on-write clone, then a copy.
    """
    if link and isinstance(path, Path) and _try_hardlink(path, target):
        return "linked"
    descriptor = create_file(target)
    try:
        return _clone_or_copy(path, descriptor, target, progress)
    finally:
        os.close(descriptor)


def create_file(path: Path) -> int:
    """Create a file; return its descriptor, for a FileWriter.

    Raises:
        FileExistsError: it exists already.
    """
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def write_index(path: Path, weight_map: Mapping[str, str], metadata: Mapping[str, object]) -> None:
    """Write the index, keys in natural order, and flush it to disk."""
    sorted_weight_map = {key: weight_map[key] for key in sorted(weight_map, key=natural_sort_key)}
    text = json.dumps({"metadata": dict(metadata), "weight_map": sorted_weight_map}, indent=2)
    descriptor = create_file(path)
    try:
        with FileWriter(path, descriptor, lambda _: None) as writer:
            writer.write(f"{text}\n".encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _try_hardlink(path: Path, target: Path) -> bool:
    try:
        # Resolve symbolic links: hub caches consist of them.
        target.hardlink_to(path.resolve())
    except OSError as error:
        if error.errno not in _UNSUPPORTED_LINK_ERRNOS:
            raise
        return False
    return True


def _clone_or_copy(
    path: Location, descriptor: int, target: Path, progress: ProgressCallback
) -> str:
    with open_source(path) as source:
        if not source.is_remote and _try_clone(source, descriptor):
            return "cloned"
        span = Span(path, 0, source.nbytes)
    with FileWriter(target, descriptor, progress) as writer:
        writer.copy_span(span)
    os.fsync(descriptor)
    return "copied"


def _try_clone(source: ByteSource, descriptor: int) -> bool:
    try:
        fcntl.ioctl(descriptor, _FICLONE, source.fileno())
    except OSError as error:
        if error.errno not in _UNSUPPORTED_LINK_ERRNOS:
            raise
        return False
    return True
