"""RenameLink: keys of a file that are keys of a module. RenameContext: what is unexplained."""

from collections.abc import Mapping
from enum import Enum, auto
from typing import Final

from msgspec import Struct

from ckptool.model import TensorInfo

Tensors = Mapping[str, TensorInfo]
Segments = tuple[str, ...]
"""Segments of a key pattern; `*` for a number."""

MAX_CANDIDATES: Final = 8
"""Maximum number of candidates that are kept apart; of more, none is told from the others."""


class LinkKind(Enum):
    """What shows that two sets of keys are the same tensors."""

    NAME = auto()
    """The names differ in dots, underscores and capitals only."""
    SUBTREE = auto()
    """Below one prefix each, keys and shapes are the same."""
    ORDER = auto()
    """Numbered layers of the same shapes in the same order."""
    MODULE = auto()
    """One module's tensors have the same last names and shapes."""
    PARAMETER = auto()
    """Tensors have the same shape, in the same place."""
    LIST = auto()
    """A list without names: tensors have the shapes of the module's parameters, in order."""


class RenameLink(Struct, frozen=True):
    """Keys of the file that are keys of the module, by one kind of evidence."""

    old: str
    """Pattern of the keys in the file; `*` for numbers."""
    new: str
    pairs: Mapping[str, str]
    """Key in the file -> key in the module."""
    kind: LinkKind
    detail: str = ""
    """What else the evidence says, as a clause; "" for nothing."""
    alternatives: tuple[str, ...] = ()
    """Patterns of keys that fit as well, on either side."""
    transposed_keys: tuple[str, ...] = ()
    is_complete: bool = False
    """Whether the patterns are as they are to be shown; else links of one change are joined."""


class RenameContext(Struct, frozen=True):
    """What is still to be explained, and where it is."""

    missing: Tensors
    """Tensors of the module that the file lacks, by key."""
    unexpected: Tensors
    """Tensors of the file that the module lacks, by key."""
    places: Mapping[str, str]
    """Key of `unexpected` -> key that it has after the renames found so far."""
    shared_prefixes: frozenset[str] = frozenset()
    """Prefixes of keys that file and module both have, after the renames found so far."""


def mask_layers(key: str) -> tuple[Segments, tuple[str, ...]]:
    """Return the segments of a key with `*` for integers, and these numbers."""
    segments = key.split(".")
    numbers = tuple([s for s in segments if s.isdigit() and s.isascii()])
    if not numbers:
        return tuple(segments), ()
    return tuple(["*" if s.isdigit() and s.isascii() else s for s in segments]), numbers
