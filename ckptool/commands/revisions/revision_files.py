"""New and changed files of a chain -> the folder: all of them or none, one command at a time."""

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ckptool.errors import RevisionError
from ckptool.formats.files.output_group import gather_outputs, write_files
from ckptool.phrases import MAX_NAMED, join_limited
from ckptool.revisions.chain import read_chain


def write_chain_files(
    folder: Path,
    heads: Sequence[str],
    files: Mapping[Path, bytes],
    *,
    removed: Sequence[Path] = (),
    force: bool = False,
) -> None:
    """Write the files of a chain, if it still has the heads that they were made from.

    Args:
        folder: of the chain; it is created.
        heads: identifiers of the heads that the files follow, () for a first revision.
        files: path -> content; a file that has its content already is left alone.
        removed: files that are removed with it.
        force: whether existing files are replaced.

    Raises:
        RevisionError: another command has added a revision since.
        WriteError: a file exists already, or cannot be written; then none is.
    """
    with gather_outputs() as group:
        for parent in sorted({folder, *(path.parent for path in files)}):
            group.create_folder(parent)
        group.hold(_lock_folder(folder))
        _require_heads(folder, heads)
        new_files = {path: content for path, content in files.items() if not _has(path, content)}
        write_files(new_files, force=force, removed=removed)


@contextmanager
def _lock_folder(folder: Path) -> Iterator[None]:
    """Wait until no other command writes to a folder, and keep others waiting in the context."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _require_heads(folder: Path, heads: Sequence[str]) -> None:
    has_revisions = any(folder.glob("*.toml"))
    current_heads = read_chain(folder).heads if has_revisions else ()
    added = [revision for revision in current_heads if revision.revision not in heads]
    if added or len(current_heads) != len(heads):
        names = join_limited(added, MAX_NAMED, lambda r: r.name) or "a revision"
        raise RevisionError(
            f"{folder}: was changed meanwhile, {names} is new: run ckptool revision again"
        )


def _has(path: Path, content: bytes) -> bool:
    """Whether a file exists and has this content."""
    is_file = path.is_file() and path.stat().st_size == len(content)
    return is_file and path.read_bytes() == content
