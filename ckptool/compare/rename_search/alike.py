"""Modules and tensors of the same shapes in one place -> RenameLinks, whatever they are called."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import SequenceMatcher
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.compare.rename_search.key_patterns import list_numbers, mask_numbers
from ckptool.compare.rename_search.links import (
    MAX_CANDIDATES,
    LinkKind,
    RenameContext,
    RenameLink,
    Tensors,
    mask_layers,
)
from ckptool.model import natural_sort_key

_STANDARD_NAMES: Final = frozenset(
    ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
)
"""Names of tensors in torch's layers: one of them never becomes another."""

_Item = tuple[tuple[str, ...], str]
"""(numbers of a place, last name of a tensor; "" where the node is the tensor)."""


class KeyNode(Struct, frozen=True):
    """A module, or a tensor, in each of the numbered places where it is."""

    place: str
    """Prefix that file and module share, with `*` for numbers; "" for the root."""
    name: str
    """Its key below `place`."""
    keys: Mapping[_Item, str]

    @property
    def last_name(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def pattern(self) -> str:
        is_module = any(last_name for _, last_name in self.keys)
        return f"{self.place}.{self.name}{'.*' if is_module else ''}".removeprefix(".")


class _NodeMatch(Struct, frozen=True):
    """Nodes of the file with their counterparts in the module."""

    pairs: list[tuple[KeyNode, KeyNode]]
    alternatives: tuple[str, ...] = ()
    """Patterns that fit as well; () if the pairs are unambiguous."""


def match_modules(
    context: RenameContext, *, in_place: bool, transposed: bool
) -> Iterator[RenameLink]:
    """Yield the modules whose tensors have the same last names and shapes.

    Args:
        context: what is to be explained.
        in_place: look below one shared prefix at a time, else everywhere.
        transposed: whether the two dimensions of a matrix may be swapped.
    """

    def sign(node: KeyNode, tensors: Tensors) -> object:
        return _describe_shapes(node, tensors, transposed=transposed)

    build = _build_module_nodes if in_place else _build_layer_nodes
    for match in _match_nodes(build, sign, context):
        yield from _link_nodes(match, context, LinkKind.MODULE, in_place=in_place)


def match_parameters(
    context: RenameContext, *, same_name: bool, transposed: bool
) -> Iterator[RenameLink]:
    """Yield single tensors of the same shape in the same place.

    Args:
        context: what is to be explained.
        same_name: whether the last segments have to be equal.
        transposed: whether the two dimensions of a matrix may be swapped.
    """

    def sign(node: KeyNode, tensors: Tensors) -> object:
        shapes = _describe_shapes(node, tensors, transposed=transposed)
        return (node.last_name if same_name else "", shapes)

    for match in _match_nodes(_build_tensor_nodes, sign, context):
        if all(_may_be_renamed(old, new) for old, new in match.pairs):
            yield from _link_nodes(match, context, LinkKind.PARAMETER, in_place=True)


def _may_be_renamed(old: KeyNode, new: KeyNode) -> bool:
    """Whether the last names are equal, or no others in torch and of one owner."""
    names = {old.last_name, new.last_name}
    return len(names) == 1 or (
        not names <= _STANDARD_NAMES and not ("." in old.name and "." in new.name)
    )


def _describe_shapes(node: KeyNode, tensors: Tensors, *, transposed: bool) -> object:
    def get_form(shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(shape)) if transposed and _is_matrix(shape) else shape

    return frozenset((item, get_form(tensors[key].shape)) for item, key in node.keys.items())


def _is_matrix(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2


_BuildNodes = Callable[[Mapping[str, str], frozenset[str]], list[KeyNode]]


def _build_module_nodes(places: Mapping[str, str], prefixes: frozenset[str]) -> list[KeyNode]:
    """Return the modules below each shared prefix."""
    nodes: dict[tuple[str, str], dict[_Item, str]] = {}
    for key, location in places.items():
        place, remainder = split_place(location, prefixes)
        name, _, last_name = remainder.rpartition(".")
        if name:
            node = nodes.setdefault((mask_numbers(place), name), {})
            node[list_numbers(place), last_name] = key
    return [KeyNode(place, name, keys) for (place, name), keys in nodes.items()]


def _build_tensor_nodes(places: Mapping[str, str], prefixes: frozenset[str]) -> list[KeyNode]:
    """Return the tensors below each shared prefix."""
    nodes: dict[tuple[str, str], dict[_Item, str]] = {}
    for key, location in places.items():
        place, name = split_place(location, prefixes)
        nodes.setdefault((mask_numbers(place), name), {})[list_numbers(place), ""] = key
    return [KeyNode(place, name, keys) for (place, name), keys in nodes.items()]


def _build_layer_nodes(places: Mapping[str, str], prefixes: frozenset[str]) -> list[KeyNode]:  # noqa: ARG001
    """Return the modules wherever they are, those in numbered layers as one."""
    nodes: dict[str, dict[_Item, str]] = {}
    for key, location in places.items():
        owner, _, last_name = location.rpartition(".")
        if owner:
            segments, numbers = mask_layers(owner)
            nodes.setdefault(".".join(segments), {})[numbers, last_name] = key
    return [KeyNode("", name, keys) for name, keys in nodes.items()]


def split_place(key: str, prefixes: frozenset[str]) -> tuple[str, str]:
    """Return the longest of `prefixes` that `key` begins with, and what follows it."""
    end = key.rfind(".")
    while end > 0 and key[:end] not in prefixes:
        end = key.rfind(".", 0, end)
    return (key[:end], key[end + 1 :]) if end > 0 else ("", key)


def _match_nodes(
    build: _BuildNodes, sign: Callable[[KeyNode, Tensors], object], context: RenameContext
) -> Iterator[_NodeMatch]:
    """Yield the nodes of one place with the same signature."""
    buckets: dict[object, tuple[list[KeyNode], list[KeyNode]]] = {}
    sides = (
        (0, context.places, context.unexpected),
        (1, {key: key for key in context.missing}, context.missing),
    )
    for side, places, tensors in sides:
        for node in build(places, context.shared_prefixes):
            signature = (node.place, sign(node, tensors))
            buckets.setdefault(signature, ([], []))[side].append(node)
    for olds, news in buckets.values():
        if olds and news:
            yield from _pair_alike_nodes(olds, news)


def _pair_alike_nodes(olds: list[KeyNode], news: list[KeyNode]) -> Iterator[_NodeMatch]:
    """Pair nodes of the same shapes: layers of one list together, then the others."""
    old_layers, new_layers = _group_by_layer_list(olds), _group_by_layer_list(news)
    joined: set[str] = set()
    for numbers in old_layers.keys() & new_layers.keys():
        sides = (old_layers[numbers], new_layers[numbers])
        joined.update(node.name for lists in sides for layers in lists for node in layers)
        yield from _pair_nodes(*([_join_layers(layers) for layers in lists] for lists in sides))
    yield from _pair_nodes(
        [node for node in olds if node.name not in joined],
        [node for node in news if node.name not in joined],
    )


def _group_by_layer_list(nodes: list[KeyNode]) -> dict[frozenset[object], list[list[KeyNode]]]:
    """Return numbers -> layers with these numbers, for lists of two layers or more."""
    lists: dict[object, list[KeyNode]] = {}
    for node in nodes:
        lists.setdefault(mask_layers(node.name)[0], []).append(node)
    groups: dict[frozenset[object], list[list[KeyNode]]] = {}
    for layers in lists.values():
        if len(layers) > 1:
            numbers = frozenset(mask_layers(node.name)[1] for node in layers)
            groups.setdefault(numbers, []).append(layers)
    return groups


def _join_layers(layers: list[KeyNode]) -> KeyNode:
    """Return one node for the layers of a list."""
    keys: dict[_Item, str] = {}
    for node in layers:
        numbers = mask_layers(node.name)[1]
        keys |= {
            ((*outer, *numbers), last_name): key for (outer, last_name), key in node.keys.items()
        }
    return KeyNode(layers[0].place, ".".join(mask_layers(layers[0].name)[0]), keys)


def _pair_nodes(olds: list[KeyNode], news: list[KeyNode]) -> Iterator[_NodeMatch]:
    """Pair nodes of the same shapes: by last name, by number; what is left is ambiguous."""
    pairs = _pair_by_last_name(olds, news)
    yield from (_NodeMatch([pair]) for pair in pairs)
    used = {id(node) for pair in pairs for node in pair}
    olds = [node for node in olds if id(node) not in used]
    news = [node for node in news if id(node) not in used]
    if not olds or not news:
        return
    numbered_pairs = _pair_by_number(olds, news)
    if len(olds) == len(news) == 1:
        yield _NodeMatch([(olds[0], news[0])])
    elif numbered_pairs:
        yield _NodeMatch(numbered_pairs)
    elif max(len(olds), len(news)) <= MAX_CANDIDATES:
        for old, new in _pair_similar_names(olds, news):
            others = [node for node in news if node is not new]
            others += [node for node in olds if node is not old] if len(news) < len(olds) else []
            yield _NodeMatch([(old, new)], tuple(node.pattern for node in others))
    else:
        sides = [
            sorted(side, key=lambda node: natural_sort_key(node.name)) for side in (olds, news)
        ]
        count = max(len(olds), len(news))
        yield _NodeMatch([*zip(*sides, strict=False)], (f"{count - 1:,} others of these shapes",))


def _pair_by_last_name(olds: list[KeyNode], news: list[KeyNode]) -> list[tuple[KeyNode, KeyNode]]:
    old_counts = Counter(node.last_name for node in olds)
    new_counts = Counter(node.last_name for node in news)
    new_by_name = {node.last_name: node for node in news}
    return [
        (node, new_by_name[node.last_name])
        for node in olds
        if old_counts[node.last_name] == new_counts[node.last_name] == 1
    ]


def _pair_by_number(olds: list[KeyNode], news: list[KeyNode]) -> list[tuple[KeyNode, KeyNode]]:
    """Pair nodes that are called alike but for a number, and have the same numbers; else []."""
    forms = [{mask_numbers(node.name) for node in nodes} for nodes in (olds, news)]
    new_by_number = {list_numbers(node.name): node for node in news}
    old_numbers = {list_numbers(node.name) for node in olds}
    if [len(form) for form in forms] != [1, 1] or old_numbers != new_by_number.keys():
        return []
    return [(node, new_by_number[list_numbers(node.name)]) for node in olds]


def _pair_similar_names(
    olds: list[KeyNode], news: list[KeyNode]
) -> Iterator[tuple[KeyNode, KeyNode]]:
    """Yield pairs: the most similar names first, in order where names are equally similar."""
    scores = {
        (i, j): SequenceMatcher(None, old.last_name, new.last_name).ratio()
        for i, old in enumerate(olds)
        for j, new in enumerate(news)
    }
    free_olds, free_news = {*range(len(olds))}, {*range(len(news))}
    for i, j in sorted(scores, key=lambda pair: (-scores[pair], *pair)):
        if i in free_olds and j in free_news:
            free_olds.remove(i)
            free_news.remove(j)
            yield olds[i], news[j]


def _link_nodes(
    match: _NodeMatch, context: RenameContext, kind: LinkKind, *, in_place: bool
) -> Iterator[RenameLink]:
    is_ambiguous, is_list = bool(match.alternatives), len(match.pairs) > 1
    links = [
        RenameLink(
            *_format_patterns(old, new, in_place=in_place, masked=is_list and not is_ambiguous),
            {key: new.keys[item] for item, key in old.keys.items()},
            kind,
            alternatives=match.alternatives,
        )
        for old, new in match.pairs
    ]
    if is_ambiguous and is_list:
        pairs = {old: new for link in links for old, new in link.pairs.items()}
        patterns = (_format_common_prefix(pairs), _format_common_prefix(pairs.values()))
        links = [replace(links[0], pairs=pairs, is_complete=True)]
        links = [replace(link, old=patterns[0], new=patterns[1]) for link in links]
    for link in links:
        yield from _split_transposed(link, context)


def _format_patterns(
    old: KeyNode, new: KeyNode, *, in_place: bool, masked: bool
) -> tuple[str, str]:
    """Return the patterns of the keys of two nodes; the places of `old` may be renamed ones."""
    item, old_key = next(iter(old.keys.items()))
    patterns = []
    for node, key in ((old, old_key), (new, new.keys[item])):
        owner = key.rpartition(".")[0] if item[1] else key
        name = mask_numbers(node.name) if masked else node.name
        pattern = ".".join(mask_layers(owner)[0])
        if in_place:
            head = owner.split(".")[: -1 - node.name.count(".")]
            pattern = ".".join([*map(mask_numbers, head), name])
        patterns.append(f"{pattern}.*" if item[1] else pattern)
    return patterns[0], patterns[1]


def _format_common_prefix(keys: Iterable[str]) -> str:
    """Return the segments that all keys begin with, and `*`."""
    first, last = min(keys).split("."), max(keys).split(".")
    count = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    return ".".join((*first[:count], "*"))


def _split_transposed(link: RenameLink, context: RenameContext) -> Iterator[RenameLink]:
    """Yield the link, and apart what it says of square matrices if others are transposed."""
    shapes = {key: context.unexpected[key].shape for key in link.pairs}
    transposed = [
        key for key, new in link.pairs.items() if shapes[key] != context.missing[new].shape
    ]
    if not transposed:
        yield link
        return
    squares = {key: new for key, new in link.pairs.items() if is_square(shapes[key])}
    decided = {key: new for key, new in link.pairs.items() if key not in squares}
    yield replace(link, pairs=decided, transposed_keys=tuple(transposed))
    if squares:
        yield replace(
            link,
            pairs=squares,
            transposed_keys=tuple(squares),
            alternatives=(*link.alternatives, SQUARE),
        )


SQUARE: Final = "square, so the shape does not show whether it is transposed"
"""Stands among the alternatives of a square matrix."""


def is_square(shape: tuple[int, ...]) -> bool:
    """Whether a shape is that of a square matrix of more than one element."""
    return _is_matrix(shape) and shape[0] == shape[1] > 1
