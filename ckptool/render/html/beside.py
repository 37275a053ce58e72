"""Keys of two sides -> SideBySideSection: one tree, matching tensors folded into their module."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.render import Style
from ckptool.render.blocks import groups
from ckptool.render.html.parts import Line, Tree
from ckptool.render.html.treemap import DEEPEST
from ckptool.render.text import count

NONE: Final = "\N{EM DASH}"
"""Cell of a side without this tensor."""
_FEW: Final = 3
"""Maximum rows of a module with one outcome (all missing, say) that are shown one by one."""
_MOST_LINES: Final = 200


class Leaf(Struct, frozen=True):
    """A tensor with its description on each side, `ABSENT_MARK` if a side has none."""

    key: str
    left: str
    right: str
    status: str
    tone: str
    """"ok" if both sides match, else "bad"."""


@dataclass(slots=True, eq=False)
class _Node:
    leaves: list[tuple[Leaf, int]] = field(default_factory=list)
    children: dict[str, "_Node"] = field(default_factory=dict)
    total: int = 0
    agreeing: int = 0
    forms: dict[tuple[str, str, bool, bool], int] = field(default_factory=dict)
    """(status, tone, left has it, right has it) -> number of rows."""


def tree(
    id_: str, title: str, sides: tuple[str, str], leaves: Iterable[Leaf], style: Style
) -> Tree | None:
    """Build the tree; None if there are no leaves."""
    forms = ((one.key, (one.left, one.right, one.status), one) for one in leaves)
    root = _Node()
    for group in groups(forms, style):
        _put(root, group.key, group.items[0], len(group.items))
    if not root.total:
        return None
    lines = list(_lines(root, "", 0))
    return Tree(
        id=id_,
        title=title,
        sides=sides,
        lines=tuple(lines[:_MOST_LINES]),
        more=max(len(lines) - _MOST_LINES, 0),
    )


def _put(root: _Node, key: str, leaf: Leaf, number: int) -> None:
    *modules, name = key.split(".", DEEPEST)
    node = root
    form = leaf.status, leaf.tone, leaf.left != NONE, leaf.right != NONE
    for module in (*modules, None):
        node.total += number
        node.agreeing += number * (leaf.tone == "ok")
        node.forms[form] = node.forms.get(form, 0) + 1
        if module is not None:
            node = node.children.setdefault(module, _Node())
    node.leaves.append((replace(leaf, key=name), number))


def _lines(node: _Node, prefix: str, depth: int) -> Iterator[Line]:
    """Yield rows, differences before matches."""
    for leaf, number in sorted(node.leaves, key=lambda one: one[0].tone == "ok"):
        left, right = leaf.left, leaf.right
        yield Line(depth, prefix, leaf.key, number, left, right, leaf.status, leaf.tone)
    by_fault = sorted(node.children.items(), key=lambda one: one[1].agreeing == one[1].total)
    for name, child in by_fault:
        full, only = _single(name, child)
        if len(only.leaves) == 1 and not only.children:
            yield from _lines(_Node(_renamed(only, full)), prefix, depth)
        elif (form := _form(only)) is not None:
            status, tone, on_left, on_right = form
            held = count(only.total, "tensor")
            sides = held if on_left else NONE, held if on_right else NONE
            yield Line(depth, prefix, full, 1, *sides, status, tone)
        else:
            yield Line(depth, prefix, full, 1, "", "", "", "module")
            yield from _lines(only, f"{prefix}{full}.", depth + 1)


def _form(node: _Node) -> tuple[str, str, bool, bool] | None:
    """Return the outcome of all tensors if one row can show them, else None."""
    if len(node.forms) != 1:
        return None
    ((form, lines),) = node.forms.items()
    return form if form[1] == "ok" or lines > _FEW else None


def _renamed(node: _Node, module: str) -> list[tuple[Leaf, int]]:
    """Return the node's leaves with `module` as prefix of their keys."""
    return [(replace(leaf, key=f"{module}.{leaf.key}"), number) for leaf, number in node.leaves]


def _single(name: str, node: _Node) -> tuple[str, _Node]:
    """Join a chain of modules with one child each; return its dotted name and last node."""
    while not node.leaves and len(node.children) == 1:
        ((inner, node),) = node.children.items()
        name = f"{name}.{inner}"
    return name, node
