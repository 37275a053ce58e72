"""Keys of two sides -> SideBySideSection: one tree, matching tensors folded into their module."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.model import natural_sort_key
from ckptool.phrases import pluralize
from ckptool.render import RenderOptions
from ckptool.render.blocks import fold_unless_verbose
from ckptool.render.html.components import SideBySideRow, SideBySideSection
from ckptool.render.html.treemap import MAX_DEPTH

ABSENT_MARK: Final = "\N{EM DASH}"
"""Cell of a side without this tensor."""
_MAX_SEPARATE_TENSORS: Final = 3
"""Maximum rows of a module with one outcome (all missing, say) that are shown one by one."""
_MAX_ROWS: Final = 200


class SideBySideLeaf(Struct, frozen=True):
    """A tensor with its description on each side, `ABSENT_MARK` if a side has none."""

    key: str
    left: str
    right: str
    status: str
    tone: str
    """"ok" if both sides match, else "bad"."""


@dataclass(slots=True, eq=False)
class _SideBySideNode:
    leaves: list[tuple[SideBySideLeaf, int]] = field(default_factory=list)
    children: dict[str, "_SideBySideNode"] = field(default_factory=dict)
    total: int = 0
    matching_count: int = 0
    outcomes: dict[tuple[str, str, bool, bool], int] = field(default_factory=dict)
    """(status, tone, left has it, right has it) -> number of rows."""


def build_side_by_side_tree(
    title: str,
    sides: tuple[str, str],
    leaves: Iterable[SideBySideLeaf],
    options: RenderOptions,
) -> SideBySideSection | None:
    """Build the tree; None if there are no leaves."""
    ordered_leaves = sorted(leaves, key=lambda leaf: natural_sort_key(leaf.key))
    keyed_leaves = (
        (leaf.key, (leaf.left, leaf.right, leaf.status), leaf) for leaf in ordered_leaves
    )
    root = _SideBySideNode()
    for group in fold_unless_verbose(keyed_leaves, options):
        _add_leaf(root, group.key, group.items[0], len(group.items))
    if not root.total:
        return None
    rows = list(_iter_rows(root, "", 0))
    return SideBySideSection(
        id="state",
        title=title,
        sides=sides,
        rows=tuple(rows[:_MAX_ROWS]),
        more=max(len(rows) - _MAX_ROWS, 0),
    )


def _add_leaf(root: _SideBySideNode, key: str, leaf: SideBySideLeaf, tensor_count: int) -> None:
    *modules, name = key.split(".", MAX_DEPTH)
    node = root
    outcome = leaf.status, leaf.tone, leaf.left != ABSENT_MARK, leaf.right != ABSENT_MARK
    for module in (*modules, None):
        node.total += tensor_count
        node.matching_count += tensor_count * (leaf.tone == "ok")
        node.outcomes[outcome] = node.outcomes.get(outcome, 0) + 1
        if module is not None:
            node = node.children.setdefault(module, _SideBySideNode())
    node.leaves.append((replace(leaf, key=name), tensor_count))


def _iter_rows(node: _SideBySideNode, prefix: str, depth: int) -> Iterator[SideBySideRow]:
    """Yield rows, differences before matches."""
    for leaf, tensor_count in sorted(node.leaves, key=lambda entry: entry[0].tone == "ok"):
        left, right = leaf.left, leaf.right
        yield SideBySideRow(
            depth, prefix, leaf.key, tensor_count, left, right, leaf.status, leaf.tone
        )
    children = sorted(
        node.children.items(), key=lambda entry: entry[1].matching_count == entry[1].total
    )
    for name, child in children:
        module_path, module_node = _collapse_single_children(name, child)
        if len(module_node.leaves) == 1 and not module_node.children:
            yield from _iter_rows(
                _SideBySideNode(_prefix_leaves(module_node, module_path)), prefix, depth
            )
        elif (outcome := _get_common_outcome(module_node)) is not None:
            status, tone, has_left, has_right = outcome
            count_text = pluralize(module_node.total, "tensor")
            sides = (
                count_text if has_left else ABSENT_MARK,
                count_text if has_right else ABSENT_MARK,
            )
            yield SideBySideRow(depth, prefix, module_path, 1, *sides, status, tone)
        else:
            yield SideBySideRow(depth, prefix, module_path, 1, "", "", "", "module")
            yield from _iter_rows(module_node, f"{prefix}{module_path}.", depth + 1)


def _get_common_outcome(node: _SideBySideNode) -> tuple[str, str, bool, bool] | None:
    """Return the outcome of all tensors if one row can show them, else None."""
    if len(node.outcomes) != 1:
        return None
    ((outcome, row_count),) = node.outcomes.items()
    return outcome if outcome[1] == "ok" or row_count > _MAX_SEPARATE_TENSORS else None


def _prefix_leaves(node: _SideBySideNode, module: str) -> list[tuple[SideBySideLeaf, int]]:
    """Return the node's leaves with `module` as prefix of their keys."""
    return [
        (replace(leaf, key=f"{module}.{leaf.key}"), tensor_count)
        for leaf, tensor_count in node.leaves
    ]


def _collapse_single_children(name: str, node: _SideBySideNode) -> tuple[str, _SideBySideNode]:
    """Join a chain of modules with one child each; return its dotted name and last node."""
    while not node.leaves and len(node.children) == 1:
        ((inner, node),) = node.children.items()
        name = f"{name}.{inner}"
    return name, node
