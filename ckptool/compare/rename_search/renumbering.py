"""Keys of a file x keys of a module -> RenameLinks of layers that changed their number only."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import Struct

from ckptool.compare.rename_search.alike import split_place
from ckptool.compare.rename_search.key_patterns import (
    format_numbers,
    generalize_numbers,
    list_numbers,
    mask_numbers,
    split_at_numbers,
)
from ckptool.compare.rename_search.links import LinkKind, RenameContext, RenameLink, Tensors
from ckptool.model import TensorInfo, natural_sort_key
from ckptool.phrases import join_limited

_Unit = frozenset[tuple[str, tuple[int, ...]]]
"""One numbered layer: (key below its number, shape) of each tensor."""


class _Placement(Struct, frozen=True):
    """Where numbered layers of the file are in the module."""

    moves: tuple[tuple[str, str], ...]
    """(number in the file, number in the module) of the layers that move."""
    is_unique: bool
    """Whether the shapes allow no other order-preserving placement, and contradict that nothing
    moved."""


def find_renumbered_layers(
    missing: Tensors, unexpected: Tensors, expected: Tensors, actual: Tensors
) -> Iterator[RenameLink]:
    """Yield the layers of one list that have other numbers in the module, in the same order.

    A layer that loads as it is may be part of the move (2 -> 3, 1 -> 2): `missing` and `unexpected`
    are the keys with a shape mismatch, `expected` and `actual` have all keys.
    """
    prefixes = _list_number_prefixes(missing) & _list_number_prefixes(unexpected)
    if not prefixes:
        return
    file_layers, module_layers = _group_layers(actual, prefixes), _group_layers(expected, prefixes)
    used_file_keys: set[str] = set()
    used_module_keys: set[str] = set()
    moves: dict[tuple[str, str, _Placement], dict[str, dict[str, str]]] = {}
    for prefix in sorted(prefixes, key=lambda p: (-p.count("."), -len(p), natural_sort_key(p))):
        for tail, placement in _iter_placements(file_layers[prefix], module_layers[prefix]):
            pairs = _pair_keys(prefix, tail, placement.moves, file_layers[prefix])
            is_free = used_file_keys.isdisjoint(pairs) and used_module_keys.isdisjoint(
                pairs.values()
            )
            is_open = all(a in unexpected or a in expected for a in pairs) and all(
                b in missing or b in actual for b in pairs.values()
            )
            resolves = any(a in unexpected for a in pairs) and any(
                b in missing for b in pairs.values()
            )
            if is_free and is_open and resolves:
                used_file_keys.update(pairs)
                used_module_keys.update(pairs.values())
                moves.setdefault((mask_numbers(prefix), tail, placement), {})[prefix] = pairs
    for (_, tail, placement), pairs_by_prefix in moves.items():
        yield _build_link(tail, placement, pairs_by_prefix)


def _list_number_prefixes(keys: Iterable[str]) -> set[str]:
    """Return the text before each number of each key."""
    return {before for key in keys for before, _, _ in split_at_numbers(key)}


_Layers = dict[str, dict[str, TensorInfo]]
"""Number -> text after the number -> tensor."""


def _group_layers(tensors: Tensors, prefixes: set[str]) -> dict[str, _Layers]:
    """Return prefix -> layers, for the numbers that follow one of `prefixes`."""
    layers: dict[str, _Layers] = {prefix: {} for prefix in prefixes}
    for key, tensor in tensors.items():
        for before, number, after in split_at_numbers(key):
            group = layers.get(before)
            if group is not None:
                group.setdefault(number, {})[after] = tensor
    return layers


def _iter_placements(
    file_layers: _Layers, module_layers: _Layers
) -> Iterator[tuple[str, _Placement]]:
    """Yield (text that the keys have after the number, placement): whole layers, else parts."""
    pending = [("", file_layers, module_layers)]
    while pending:
        tail, in_file, in_module = pending.pop()
        placement = _place_layers(in_file, in_module)
        if placement is not None:
            yield tail, placement
            continue
        file_parts, module_parts = _split_layers(in_file, tail), _split_layers(in_module, tail)
        pending += [
            (part, layers, module_parts[part])
            for part, layers in file_parts.items()
            if part in module_parts
            and part != tail
            and _have_other_shapes(layers, module_parts[part])
        ]


def _have_other_shapes(file_layers: _Layers, module_layers: _Layers) -> bool:
    return {n: _describe_layer(layer) for n, layer in file_layers.items()} != {
        n: _describe_layer(layer) for n, layer in module_layers.items()
    }


def _split_layers(layers: _Layers, tail: str) -> dict[str, _Layers]:
    """Return the layers' parts by the text after the number, one segment longer than `tail`."""
    parts: dict[str, _Layers] = {}
    for number, layer in layers.items():
        for text, tensor in layer.items():
            dot = text.find(".", len(tail) + 1)
            part = text if dot < 0 else text[:dot]
            parts.setdefault(part, {}).setdefault(number, {})[text] = tensor
    return parts


def _describe_layer(layer: Tensors) -> _Unit:
    return frozenset((text, tensor.shape) for text, tensor in layer.items())


def _place_layers(file_layers: _Layers, module_layers: _Layers) -> _Placement | None:
    """Place the file's layers into the module's, or the other way round, in order.

    None if one is no subsequence of the other, or nothing has to move.
    """
    file_numbers, module_numbers = _sort_numbers(file_layers), _sort_numbers(module_layers)
    file_units = [_describe_layer(file_layers[n]) for n in file_numbers]
    module_units = [_describe_layer(module_layers[n]) for n in module_numbers]
    is_inserted = len(file_units) <= len(module_units)
    short, long = (file_units, module_units) if is_inserted else (module_units, file_units)
    first = _find_subsequence(short, long)
    last = _find_subsequence(short[::-1], long[::-1])
    if first is None or last is None:
        return None
    last = [len(long) - 1 - place for place in reversed(last)]
    short_numbers, long_numbers = (
        (file_numbers, module_numbers) if is_inserted else (module_numbers, file_numbers)
    )
    places = _keep_numbers(short_numbers, long_numbers, first, last, short, long)
    pairs = [(short_numbers[n], long_numbers[place]) for n, place in enumerate(places)]
    all_moves = pairs if is_inserted else [(b, a) for a, b in pairs]
    moves = tuple((a, b) for a, b in all_moves if a != b)
    if not moves:
        return None
    fits_plainly = any(
        n in module_layers and _describe_layer(module_layers[n]) == _describe_layer(file_layers[n])
        for n, _ in moves
    )
    contradicts = any(
        n in module_layers and _describe_layer(module_layers[n]) != _describe_layer(file_layers[n])
        for n in file_layers
    )
    return _Placement(moves, first == last and (contradicts or not fits_plainly))


def _sort_numbers(layers: _Layers) -> list[str]:
    return sorted(layers, key=lambda number: (int(number), number))


def _find_subsequence(short: Sequence[_Unit], long: Sequence[_Unit]) -> list[int] | None:
    """Return the leftmost places of `short` as a subsequence of `long`, None if it is none."""
    places: list[int] = []
    place = -1
    for unit in short:
        place += 1
        while place < len(long) and long[place] != unit:
            place += 1
        if place == len(long):
            return None
        places.append(place)
    return places


def _keep_numbers(
    short_numbers: list[str],
    long_numbers: list[str],
    first: list[int],
    last: list[int],
    short: Sequence[_Unit],
    long: Sequence[_Unit],
) -> list[int]:
    """Return places between `first` and `last`: the layer's own number if the order allows it."""
    place_by_number = {number: place for place, number in enumerate(long_numbers)}
    places: list[int] = []
    for n, number in enumerate(short_numbers):
        own_place = place_by_number.get(number, -1)
        minimum = max(first[n], places[-1] + 1 if places else 0)
        if minimum <= own_place <= last[n] and long[own_place] == short[n]:
            places.append(own_place)
        else:
            place = minimum
            while long[place] != short[n]:
                place += 1
            places.append(place)
    return places


def _pair_keys(
    prefix: str, tail: str, moves: Iterable[tuple[str, str]], file_layers: _Layers
) -> dict[str, str]:
    return {
        f"{prefix}{old}{text}": f"{prefix}{new}{text}"
        for old, new in moves
        for text in file_layers[old]
        if not tail or text == tail or text.startswith(f"{tail}.")
    }


def _build_link(
    tail: str, placement: _Placement, pairs_by_prefix: Mapping[str, Mapping[str, str]]
) -> RenameLink:
    """Build the link of all lists whose layers move alike: `stages.*.blocks.{2,4}.*`."""
    pairs = {old: new for part in pairs_by_prefix.values() for old, new in part.items()}
    prefix = generalize_numbers(pairs_by_prefix)
    is_leaf = bool(tail) and all(key.endswith(tail) for key in pairs)
    end = tail if is_leaf else f"{tail}.*"
    old_numbers, new_numbers = zip(*placement.moves, strict=True)
    steps = join_limited([f"{a} -> {b}" for a, b in placement.moves], 4, more=" ...")
    return RenameLink(
        old=f"{prefix}{format_numbers(old_numbers)}{end}",
        new=f"{prefix}{format_numbers(new_numbers)}{end}",
        pairs=pairs,
        kind=LinkKind.ORDER,
        detail=steps,
        is_complete=True,
        alternatives=() if placement.is_unique else ("other numbers",),
    )


def find_moved_layers(context: RenameContext) -> Iterator[RenameLink]:
    """Yield the lists of layers that are another list of the module, of the same shapes in order.

    The numbers may differ: `layer{1..4}.*` is `stages.{0..3}.*`. Of two lists that have no others
    beside them, most tensors are enough.
    """
    buckets: dict[object, tuple[list[_LayerList], list[_LayerList]]] = {}
    sides = (
        (0, context.places, context.unexpected),
        (1, {key: key for key in context.missing}, context.missing),
    )
    for side, places, tensors in sides:
        for layer_list in _build_layer_lists(places, context.shared_prefixes):
            form = (layer_list.place, _describe_layers(layer_list, tensors))
            buckets.setdefault(form, ([], []))[side].append(layer_list)
    left: dict[str, tuple[list[_LayerList], list[_LayerList]]] = {}
    for olds, news in buckets.values():
        if len(olds) == len(news) == 1 and len(olds[0].layers) > 1:
            yield _link_layer_lists(olds[0], news[0], context)
            continue
        for side, lists in ((0, olds), (1, news)):
            for layer_list in lists:
                left.setdefault(layer_list.place, ([], []))[side].append(layer_list)
    for olds, news in left.values():
        if len(olds) == len(news) == 1 and 1 < len(olds[0].layers) == len(news[0].layers):
            link = _link_layer_lists(olds[0], news[0], context)
            if 2 * len(link.pairs) > min(_count_layer_keys(olds[0]), _count_layer_keys(news[0])):
                yield link


class _LayerList(Struct, frozen=True):
    """Numbered layers below one prefix, in each of the numbered places where they are."""

    place: str
    """Prefix that file and module share, with `*` for numbers; "" for the root."""
    name: str
    """Text between `place` and the layers' numbers."""
    layers: dict[str, dict[tuple[tuple[str, ...], str], str]]
    """Number -> (numbers of the place, text after the number) -> key."""
    heads: set[str]
    """Text before `name` in each key, as the file or the module has it."""


def _build_layer_lists(places: Mapping[str, str], prefixes: frozenset[str]) -> list[_LayerList]:
    lists: dict[tuple[str, str], _LayerList] = {}
    for key, location in places.items():
        place, remainder = split_place(location, prefixes)
        numbers = list_numbers(remainder)
        if numbers:
            name, _, tail = remainder.partition(numbers[0])
            form = (mask_numbers(place), name)
            layer_list = lists.setdefault(form, _LayerList(*form, {}, set()))
            layer_list.layers.setdefault(numbers[0], {})[list_numbers(place), tail] = key
            layer_list.heads.add(key.removesuffix(remainder))
    return [*lists.values()]


def _describe_layers(layer_list: _LayerList, tensors: Tensors) -> object:
    layers = layer_list.layers
    numbers = sorted(layers, key=lambda number: (int(number), number))
    return tuple(
        frozenset((item, tensors[key].shape) for item, key in layers[number].items())
        for number in numbers
    )


def _count_layer_keys(layer_list: _LayerList) -> int:
    return sum(map(len, layer_list.layers.values()))


def _link_layer_lists(old: _LayerList, new: _LayerList, context: RenameContext) -> RenameLink:
    """Return the link of two lists of as many layers, for the tensors that both have."""
    moves = [*zip(*(sorted(side.layers, key=int) for side in (old, new)), strict=True)]
    pairs = {
        key: new.layers[new_number][item]
        for old_number, new_number in moves
        for item, key in old.layers[old_number].items()
        if item in new.layers[new_number]
        and context.unexpected[key].shape == context.missing[new.layers[new_number][item]].shape
    }
    is_same = all(a == b for a, b in moves)
    patterns = []
    for layer_list, column in ((old, 0), (new, 1)):
        head = generalize_numbers(layer_list.heads) + layer_list.name
        numbers = "*" if is_same else format_numbers([move[column] for move in moves])
        patterns.append(
            f"{head}{numbers}" if is_same and head.endswith(".") else f"{head}{numbers}.*"
        )
    steps = join_limited([f"{a} -> {b}" for a, b in moves if a != b], 4, more=" ...")
    return RenameLink(patterns[0], patterns[1], pairs, LinkKind.ORDER, steps, is_complete=True)
