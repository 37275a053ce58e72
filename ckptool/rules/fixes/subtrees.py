"""Keys of one side -> the sub-trees of which the other side has nothing."""

from collections.abc import Collection, Iterable, Iterator
from functools import cached_property
from itertools import islice
from typing import Final

from ckptool.model import StateDict
from ckptool.phrases import quote_python

_MAX_DEPTH: Final = 32
"""Maximum ancestors of a key that are looked at: keys come from files."""
_NAME_POSITIONS_CODE: Final = (
    "state_dict = {str(n): tensor for n, tensor in enumerate(state_dict)}; "
)
"""Code that makes a state_dict with the keys of a report of a list of tensors."""
_MAX_POPPED: Final = 4
"""Maximum keys that code drops by name."""


class SubtreeFinder:
    """Finds the largest sub-trees that have no key on the other side.

    Args:
        other_keys: keys of the other side.
    """

    def __init__(self, other_keys: Iterable[str]) -> None:
        self._other_keys = other_keys

    @cached_property
    def _prefixes(self) -> set[str]:
        return {prefix for key in self._other_keys for prefix in _iter_ancestors(key)}

    def find_absent(self, key: str) -> str:
        """Return the largest sub-tree with `key` that the other side lacks, "" for all keys.

        It is `key` itself where the other side has a key of the same module.
        """
        return next((p for p in _iter_ancestors(key) if p not in self._prefixes), key)

    def group_keys(self, keys: Iterable[str]) -> dict[str, list[str]]:
        """Return sub-tree -> its keys, in their order."""
        groups: dict[str, list[str]] = {}
        for key in keys:
            groups.setdefault(self.find_absent(key), []).append(key)
        return groups


def _iter_ancestors(key: str) -> Iterator[str]:
    """Yield "", "a" and "a.b" for "a.b.c"."""
    yield ""
    end = -1
    for _ in range(_MAX_DEPTH):
        end = key.find(".", end + 1)
        if end < 0:
            return
        yield key[:end]


def format_drop_code(keys: Collection[str], subtree: str, state: StateDict) -> str:
    """Return Python code that drops `keys`, all of `subtree`, from `state_dict`.

    A list of tensors, whose keys are positions, becomes a dict first.
    """
    is_list = state.role == "tensors" and all(key.isdecimal() for key in state.tensors)
    return f"{_NAME_POSITIONS_CODE if is_list else ''}{_format_dict_drop(keys, subtree, state)}"


def _format_dict_drop(keys: Collection[str], subtree: str, state: StateDict) -> str:
    prefix = f"{subtree}."
    if len(keys) <= 1 or subtree in keys:
        return "; ".join(
            f"state_dict.pop({quote_python(key)})" for key in islice(keys, _MAX_POPPED)
        )
    is_whole = sum(key.startswith(prefix) for key in state.tensors) <= len(keys)
    if subtree and is_whole:
        condition = f"not k.startswith({quote_python(prefix)})"
        return f"state_dict = {{k: v for k, v in state_dict.items() if {condition}}}"
    return "state_dict = {k: v for k, v in state_dict.items() if k in module.state_dict()}"
