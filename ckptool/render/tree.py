"""Folded keys -> a tree of modules; a chain of single children is one row."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from msgspec import Struct

from ckptool.render.text import Folded

T = TypeVar("T")

_DEEPEST: Final = 12
"""Levels of the tree: the rest of a longer key stays together, whatever a file says."""


class Row(Struct, Generic[T], frozen=True):
    """One line of the tree."""

    name: str
    more: tuple[bool, ...]
    """For the row's ancestors below the root, and for itself: whether a sibling follows."""
    leaf: Folded[T] | None
    """None for a module."""
    items: tuple[T, ...]
    """All that is in or below it."""


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
    """Return the rows of a tree with a leaf for each item, in their order."""
    root: _Node[T] = _Node()
    for number, leaf in enumerate(leaves):
        *path, last = leaf.key.split(".", _DEEPEST - 1)
        node = root
        for name in path:
            node = node.children.setdefault(name, _Node(name=name))
        # Two leaves of one name are two rows: they differ in form.
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
