"""FoldedItems -> KeyTreeRow: rows of a module tree; a chain of single children is one row."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from msgspec import Struct

from ckptool.folding import FoldedItems

T = TypeVar("T")

_MAX_DEPTH: Final = 12
"""Maximum levels of the tree; the rest of a longer key stays together (keys are input)."""


class KeyTreeRow(Struct, Generic[T], frozen=True):
    """One row of the tree."""

    name: str
    sibling_follows: tuple[bool, ...]
    """Whether a sibling follows, for each ancestor below the root and for the row itself."""
    leaf: FoldedItems[T] | None
    """None for a module."""
    items: tuple[T, ...]
    """Items of this row and of all rows below it."""


@dataclass(slots=True)
class _KeyTreeNode(Generic[T]):
    children: "dict[object, _KeyTreeNode[T]]" = field(default_factory=dict)
    leaf: FoldedItems[T] | None = None
    name: str = ""

    @property
    def items(self) -> tuple[T, ...]:
        own_items = self.leaf.items if self.leaf else ()
        return own_items + tuple(item for child in self.children.values() for item in child.items)


def build_key_tree(leaves: Iterable[FoldedItems[T]]) -> list[KeyTreeRow[T]]:
    """Return the rows of a tree with a leaf for each group, in their order."""
    root: _KeyTreeNode[T] = _KeyTreeNode()
    for index, leaf in enumerate(leaves):
        *path, leaf_name = leaf.key.split(".", _MAX_DEPTH - 1)
        node = root
        for name in path:
            node = node.children.setdefault(name, _KeyTreeNode(name=name))
        # Two leaves of one name are two rows: they differ in dtype, shape or another attribute.
        node.children[index, leaf_name] = _KeyTreeNode(leaf=leaf, name=leaf_name)
    return list(_iter_rows(root, ()))


def _iter_rows(
    node: _KeyTreeNode[T], ancestors_follow: tuple[bool, ...]
) -> Iterator[KeyTreeRow[T]]:
    children = list(node.children.values())
    for child in children:
        sibling_follows = (*ancestors_follow, child is not children[-1])
        names = [child.name]
        while child.leaf is None and len(child.children) == 1:
            (child,) = child.children.values()  # noqa: PLW2901 - down the chain
            names.append(child.name)
        yield KeyTreeRow(".".join(names), sibling_follows, child.leaf, child.items)
        yield from _iter_rows(child, sibling_follows)
