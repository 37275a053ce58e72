"""TreemapItems -> TreemapSection: tiles, and a frame for each module with room for one."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Final

from msgspec import Struct

from ckptool.model import natural
from ckptool.render.html.parts import Frame, Meaning, Tile, Treemap
from ckptool.render.html.squarify import Box, squarify
from ckptool.render.text import count, cut, printable, size

WIDTH: Final = 960
HEIGHT: Final = 420
DEEPEST: Final = 16
"""Maximum depth of modules; deeper key segments stay together."""
_FEW: Final = 12
"""Maximum number of tensors drawn at half of the height."""
_MOST_TILES: Final = 700
_MOST_CHILDREN: Final = 250
"""Maximum children of one module; the smallest beyond it are merged into one tile."""
_LEAST_AREA: Final = 60
"""Minimum area of a module whose children are drawn one by one."""
_FRAME: Final = (48, 34)
"""Minimum width and height of a module that gets a title."""
_TITLE: Final = 16
_LETTER: Final = 6.7
_LEAST_LETTERS: Final = 10


class Item(Struct, frozen=True):
    """A tensor to draw."""

    key: str
    nbytes: int
    tone: str
    words: str
    """Its dtype and shape, and for a diff its change."""
    marked: bool = False


@dataclass(slots=True, eq=False)
class _Node:
    path: str
    name: str
    nbytes: int = 0
    tensors: int = 0
    item: Item | None = None
    """None for a module."""
    children: dict[str, "_Node"] = field(default_factory=dict)
    open: bool = False
    """Whether the children are drawn one by one."""
    by_tone: dict[str, int] = field(default_factory=dict)
    marked: bool = False


def treemap(
    id_: str, title: str, items: Iterable[Item], tones: Mapping[str, str], colour: str, mark: str
) -> Treemap | None:
    """Build the treemap of `items`; None if no item has bytes.

    Args:
        id_: HTML id of the section.
        title: title of the section.
        items: the tensors.
        tones: tone -> its meaning, in the order of the legend.
        colour_meaning: what the tones encode, "dtype" for example.
        mark_meaning: meaning of a marked item.
    """
    drawn = [item for item in items if item.nbytes > 0]
    if not drawn:
        return None
    root = _grown(drawn)
    _open_largest(root)
    frames: list[Frame] = []
    height = HEIGHT if len(drawn) > _FEW else HEIGHT // 2
    tiles = tuple(_drawn(root, Box(0, 0, WIDTH, height), 0, frames))
    return Treemap(
        id=id_,
        title=title,
        width=WIDTH,
        height=height,
        summary=f"{count(len(drawn), 'tensor')}, {size(root.nbytes)}"
        + (f", drawn as {count(len(tiles), 'tile')}" if len(tiles) < len(drawn) else ""),
        merged=len(tiles) < len(drawn),
        colour=colour,
        frames=tuple(frames),
        tiles=tiles,
        legend=tuple(_legend(drawn, tones)),
        mark=mark if any(item.marked for item in drawn) else "",
    )


def _legend(items: list[Item], tones: Mapping[str, str]) -> Iterator[Meaning]:
    for tone, meaning in tones.items():
        of_it = [item.nbytes for item in items if item.tone == tone]
        if of_it:
            yield Meaning(tone, meaning, len(of_it), size(sum(of_it)))


def _grown(items: list[Item]) -> _Node:
    """Build the tree of modules, with the summed bytes of each."""
    root = _Node("", "")
    for item in items:
        node = root
        names = item.key.split(".", DEEPEST)
        for depth, name in enumerate(names, 1):
            _add(node, item)
            if name not in node.children:
                node.children[name] = _Node(".".join(names[:depth]), name)
            node = node.children[name]
        _add(node, item)
        node.item = item
    return root


def _add(node: _Node, item: Item) -> None:
    node.nbytes += item.nbytes
    node.tensors += 1
    node.by_tone[item.tone] = node.by_tone.get(item.tone, 0) + item.nbytes
    node.marked |= item.marked


def _open_largest(root: _Node) -> None:
    """Open modules, largest first, until `_MAX_TILES` or `_MIN_MODULE_AREA` is reached."""
    per_byte = WIDTH * HEIGHT / root.nbytes
    queue = [(-root.nbytes, 0, root)]
    tiles = met = 1
    while queue and tiles < _MOST_TILES:
        _, _, node = heappop(queue)
        if node.nbytes * per_byte < _LEAST_AREA and node is not root:
            return
        node.open = bool(node.children)
        tiles += min(len(node.children), _MOST_CHILDREN)
        for child in node.children.values():
            if child.children:
                met += 1
                heappush(queue, (-child.nbytes, met, child))


def _drawn(node: _Node, box: Box, depth: int, frames: list[Frame]) -> Iterator[Tile]:
    name = node.name
    while node.open and len(node.children) == 1 and not node.item:
        (node,) = node.children.values()
        name = f"{name}.{node.name}" if name else node.name
    roomy = box.width >= _FRAME[0] and box.height >= _FRAME[1]
    alike = len(node.by_tone) == 1 and not node.marked
    if not node.open or (depth and not roomy and alike):
        yield _tile(box, node, name)
        return
    children = sorted(node.children.values(), key=lambda n: (-n.nbytes, natural(n.path)))
    if node.item:  # a key that is also a prefix of another
        children = [_Node(node.path, node.name, node.item.nbytes, 1, node.item), *children]
        children.sort(key=lambda n: -n.nbytes)
    children = _fewer(node, children)
    inner = box
    if depth and roomy:
        label = cut(printable(name), int((box.width - 8) / (_LETTER + 0.3)))
        frames.append(Frame(box.x, box.y, box.width, box.height, label, node.path))
        inner = box.inside(2, _TITLE)
    for child, place in zip(children, squarify([c.nbytes for c in children], inner), strict=True):
        yield from _drawn(child, place, depth + 1, frames)


def _fewer(node: _Node, children: list[_Node]) -> list[_Node]:
    if len(children) <= _MOST_CHILDREN:
        return children
    kept, rest = children[: _MOST_CHILDREN - 1], children[_MOST_CHILDREN - 1 :]
    more = f"{len(rest)} more"
    others = _Node(f"{node.path}: {more}" if node.path else more, more)
    for child in rest:
        others.nbytes += child.nbytes
        others.tensors += child.tensors
        others.marked |= child.marked
        for tone, nbytes in child.by_tone.items():
            others.by_tone[tone] = others.by_tone.get(tone, 0) + nbytes
    return sorted([*kept, others], key=lambda n: -n.nbytes)


def _tile(box: Box, node: _Node, name: str) -> Tile:
    item = node.item if not node.children else None
    tone = item.tone if item else max(node.by_tone, key=lambda tone: node.by_tone[tone])
    room = int((box.width - 8) / _LETTER)
    roomy = room >= min(len(name), _LEAST_LETTERS) and box.height >= 18
    return Tile(
        box.x,
        box.y,
        box.width,
        box.height,
        tone,
        item.marked if item else node.marked,
        node.path,
        cut(printable(name), room) if roomy else "",
        size(node.nbytes),
        item.words if item else count(node.tensors, "tensor"),
    )
