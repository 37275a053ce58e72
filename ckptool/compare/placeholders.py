"""ModuleDiff -> the tensors of the module that have a placeholder without elements in the file."""

from collections.abc import Iterator
from typing import Final

from ckptool.compare.changes import Missing
from ckptool.compare.module_diff import ModuleDiff
from ckptool.compare.states import list_placeholders

_MAX_DEPTH: Final = 32
"""Maximum leading segments of a key that are taken for wrappers: keys come from files."""


def find_placeholder_targets(diff: ModuleDiff) -> dict[str, str]:
    """Return missing key of the module -> the file's placeholder that stands for it.

    A placeholder has no shape to compare. It stands for the key that is left once wrappers, or any
    leading segments, are taken out of its own.
    """
    placeholders = list_placeholders(diff.state)
    if not placeholders:
        return {}
    missing_keys = {change.key for change in diff.changes if isinstance(change, Missing)}
    targets = {diff.reshaped_keys.get(key): key for key in placeholders}
    for key in placeholders:
        target = next((end for end in _iter_endings(key) if end in missing_keys), None)
        targets.setdefault(target, key)
    return {target: key for target, key in targets.items() if target is not None}


def _iter_endings(key: str) -> Iterator[str]:
    """Yield "b.c" and "c" for "a.b.c"."""
    for _ in range(_MAX_DEPTH):
        _, dot, key = key.partition(".")
        if not dot:
            return
        yield key
