"""FoldedItems -> KeyTreeRow: rows of a module tree; a chain of single children is one row."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from msgspec import Struct

from ckptool.render.text import Folded

T = TypeVar("T")

_DEEPEST: Final = 12
"""Maximum levels of the tree; the rest of a longer key stays together (keys are input)."""


class Row(Struct, Generic[T], frozen=True):
    """One row of the tree."""

    name: str
    more: tuple[bool, ...]
    """Whether a sibling follows, for each ancestor below the root and for the row itself."""
    leaf: Folded[T] | None
    """None for a module."""
    items: tuple[T, ...]
    """Items of this row and of all rows below it."""


@dataclass(slots=True)
class _Node(Generic[T]):
    children: "dict[object, _Node[T]]" = field(default_factory=dict)
    leaf: Folded[T] | None = None
    name: str = ""

    @property
    def items(self) -> tuple[T, ...]:
        own = self.leaf.items if self.leaf else ()
        return own + tuple(item for child in self.children.values() for item in child.items)


def tree(leaves: Iterable[Folded[T]]) -> list[Row[T]]:
    """Return the rows of a tree with a leaf for each group, in their order."""
    root: _Node[T] = _Node()
    for number, leaf in enumerate(leaves):
        *path, last = leaf.key.split(".", _DEEPEST - 1)
        node = root
        for name in path:
            node = node.children.setdefault(name, _Node(name=name))
        # Two leaves of one name are two rows: they differ in dtype, shape or another attribute.
        node.children[number, last] = _Node(leaf=leaf, name=last)
    return list(_rows(root, ()))


def _rows(node: _Node[T], more: tuple[bool, ...]) -> Iterator[Row[T]]:
    children = list(node.children.values())
    for child in children:
        here = (*more, child is not children[-1])
        names = [child.name]
        while child.leaf is None and len(child.children) == 1:
            (child,) = child.children.values()  # noqa: PLW2901 - down the chain
            names.append(child.name)
        yield Row(".".join(names), here, child.leaf, child.items)
        yield from _rows(child, here)
