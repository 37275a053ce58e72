"""TreemapItems -> TreemapSection: tiles, and a frame for each module with room for one."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Final

from msgspec import Struct

from ckptool.model import natural_sort_key
from ckptool.phrases import format_size, make_printable, pluralize
from ckptool.render.html.components import LegendEntry, ModuleFrame, TreemapSection, TreemapTile
from ckptool.render.html.squarify import Box, squarify
from ckptool.render.text import truncate_middle

WIDTH: Final = 960
HEIGHT: Final = 420
MAX_DEPTH: Final = 16
"""Maximum depth of modules; deeper key segments stay together."""
_MAX_HALF_HEIGHT_TENSORS: Final = 12
"""Maximum number of tensors drawn at half of the height."""
_MAX_TILES: Final = 700
_MAX_CHILDREN: Final = 250
"""Maximum children of one module; the smallest beyond it are merged into one tile."""
_MIN_MODULE_AREA: Final = 60
"""Minimum area of a module whose children are drawn one by one."""
_MIN_FRAME_SIZE: Final = (48, 34)
"""Minimum width and height of a module that gets a title."""
_TITLE_HEIGHT: Final = 16
_LETTER_WIDTH: Final = 6.7
_MIN_LABEL_LETTERS: Final = 10


class TreemapItem(Struct, frozen=True):
    """A tensor to draw."""

    key: str
    nbytes: int
    tone: str
    description: str
    """Its dtype and shape, and for a diff its change."""
    is_marked: bool = False


@dataclass(slots=True, eq=False)
class _TreemapNode:
    path: str
    name: str
    nbytes: int = 0
    tensor_count: int = 0
    item: TreemapItem | None = None
    """None for a module."""
    children: dict[str, "_TreemapNode"] = field(default_factory=dict)
    is_open: bool = False
    """Whether the children are drawn one by one."""
    nbytes_by_tone: dict[str, int] = field(default_factory=dict)
    is_marked: bool = False


def build_treemap_section(
    id_: str,
    title: str,
    items: Iterable[TreemapItem],
    tones: Mapping[str, str],
    colour_meaning: str,
    mark_meaning: str,
) -> TreemapSection | None:
    """Build the treemap of `items`; None if no item has bytes.

    Args:
        id_: HTML id of the section.
        title: title of the section.
        items: the tensors.
        tones: tone -> its meaning, in the order of the legend.
        colour_meaning: what the tones encode, "dtype" for example.
        mark_meaning: meaning of a marked item.
    """
    visible_items = [item for item in items if item.nbytes > 0]
    if not visible_items:
        return None
    root = _build_module_tree(visible_items)
    _open_largest(root)
    frames: list[ModuleFrame] = []
    height = HEIGHT if len(visible_items) > _MAX_HALF_HEIGHT_TENSORS else HEIGHT // 2
    tiles = tuple(_iter_tiles(root, Box(0, 0, WIDTH, height), 0, frames))
    return TreemapSection(
        id=id_,
        title=title,
        width=WIDTH,
        height=height,
        summary=f"{pluralize(len(visible_items), 'tensor')}, {format_size(root.nbytes)}"
        + (
            f", drawn as {pluralize(len(tiles), 'tile')}" if len(tiles) < len(visible_items) else ""
        ),
        has_merged_tiles=len(tiles) < len(visible_items),
        colour_meaning=colour_meaning,
        frames=tuple(frames),
        tiles=tiles,
        legend=tuple(_iter_legend(visible_items, tones)),
        mark_meaning=mark_meaning if any(item.is_marked for item in visible_items) else "",
    )


def _iter_legend(items: list[TreemapItem], tones: Mapping[str, str]) -> Iterator[LegendEntry]:
    for tone, meaning in tones.items():
        tone_sizes = [item.nbytes for item in items if item.tone == tone]
        if tone_sizes:
            yield LegendEntry(tone, meaning, len(tone_sizes), format_size(sum(tone_sizes)))


def _build_module_tree(items: list[TreemapItem]) -> _TreemapNode:
    """Build the tree of modules, with the summed bytes of each."""
    root = _TreemapNode("", "")
    for item in items:
        node = root
        names = item.key.split(".", MAX_DEPTH)
        for depth, name in enumerate(names, 1):
            _add_item(node, item)
            if name not in node.children:
                node.children[name] = _TreemapNode(".".join(names[:depth]), name)
            node = node.children[name]
        _add_item(node, item)
        node.item = item
    return root


def _add_item(node: _TreemapNode, item: TreemapItem) -> None:
    node.nbytes += item.nbytes
    node.tensor_count += 1
    node.nbytes_by_tone[item.tone] = node.nbytes_by_tone.get(item.tone, 0) + item.nbytes
    node.is_marked |= item.is_marked


def _open_largest(root: _TreemapNode) -> None:
    """Open modules, largest first, until `_MAX_TILES` or `_MIN_MODULE_AREA` is reached."""
    per_byte = WIDTH * HEIGHT / root.nbytes
    queue = [(-root.nbytes, 0, root)]
    tile_count = push_order = 1
    while queue and tile_count < _MAX_TILES:
        _, _, node = heappop(queue)
        if node.nbytes * per_byte < _MIN_MODULE_AREA and node is not root:
            return
        node.is_open = bool(node.children)
        tile_count += min(len(node.children), _MAX_CHILDREN)
        for child in node.children.values():
            if child.children:
                push_order += 1
                heappush(queue, (-child.nbytes, push_order, child))


def _iter_tiles(
    node: _TreemapNode, box: Box, depth: int, frames: list[ModuleFrame]
) -> Iterator[TreemapTile]:
    name = node.name
    while node.is_open and len(node.children) == 1 and not node.item:
        (node,) = node.children.values()
        name = f"{name}.{node.name}" if name else node.name
    has_frame_room = box.width >= _MIN_FRAME_SIZE[0] and box.height >= _MIN_FRAME_SIZE[1]
    is_uniform = len(node.nbytes_by_tone) == 1 and not node.is_marked
    if not node.is_open or (depth and not has_frame_room and is_uniform):
        yield _build_tile(box, node, name)
        return
    children = sorted(node.children.values(), key=lambda n: (-n.nbytes, natural_sort_key(n.path)))
    if node.item:  # a key that is also a prefix of another
        children = [_TreemapNode(node.path, node.name, node.item.nbytes, 1, node.item), *children]
        children.sort(key=lambda n: -n.nbytes)
    children = _merge_smallest(node, children)
    inner_box = box
    if depth and has_frame_room:
        label = truncate_middle(make_printable(name), int((box.width - 8) / (_LETTER_WIDTH + 0.3)))
        frames.append(ModuleFrame(box.x, box.y, box.width, box.height, label, node.path))
        inner_box = box.shrink_by(2, _TITLE_HEIGHT)
    for child, child_box in zip(
        children, squarify([c.nbytes for c in children], inner_box), strict=True
    ):
        yield from _iter_tiles(child, child_box, depth + 1, frames)


def _merge_smallest(node: _TreemapNode, children: list[_TreemapNode]) -> list[_TreemapNode]:
    if len(children) <= _MAX_CHILDREN:
        return children
    largest, smallest = children[: _MAX_CHILDREN - 1], children[_MAX_CHILDREN - 1 :]
    label = f"{len(smallest)} more"
    merged_node = _TreemapNode(f"{node.path}: {label}" if node.path else label, label)
    for child in smallest:
        merged_node.nbytes += child.nbytes
        merged_node.tensor_count += child.tensor_count
        merged_node.is_marked |= child.is_marked
        for tone, nbytes in child.nbytes_by_tone.items():
            merged_node.nbytes_by_tone[tone] = merged_node.nbytes_by_tone.get(tone, 0) + nbytes
    return sorted([*largest, merged_node], key=lambda n: -n.nbytes)


def _build_tile(box: Box, node: _TreemapNode, name: str) -> TreemapTile:
    item = node.item if not node.children else None
    tone = (
        item.tone if item else max(node.nbytes_by_tone, key=lambda tone: node.nbytes_by_tone[tone])
    )
    max_letters = int((box.width - 8) / _LETTER_WIDTH)
    has_label_room = max_letters >= min(len(name), _MIN_LABEL_LETTERS) and box.height >= 18
    return TreemapTile(
        box.x,
        box.y,
        box.width,
        box.height,
        tone,
        item.is_marked if item else node.is_marked,
        node.path,
        truncate_middle(make_printable(name), max_letters) if has_label_room else "",
        format_size(node.nbytes),
        item.description if item else pluralize(node.tensor_count, "tensor"),
    )
