"""Keys whose names differ in dots, underscores and capitals only -> RenameLinks."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Final

from ckptool.compare.rename_search.key_patterns import list_numbers, mask_numbers
from ckptool.compare.rename_search.links import LinkKind, RenameContext, RenameLink

_SEPARATORS: Final = re.compile(r"[._-]")


def pair_normalized_names(context: RenameContext) -> Iterator[RenameLink]:
    """Yield the keys of one shape that are the same without dots, underscores and capitals."""
    module_keys = _group_by_normalized_name({key: key for key in context.missing})
    pairs: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for name, olds in _group_by_normalized_name(context.places).items():
        news = module_keys.get(name, [])
        if len(olds) == len(news) == 1:
            old, new = olds[0], news[0]
            if context.unexpected[old].shape == context.missing[new].shape:
                pairs[mask_numbers(old), mask_numbers(new)][old] = new
    for (old_pattern, new_pattern), group in pairs.items():
        yield RenameLink(old_pattern, new_pattern, group, LinkKind.NAME)


def _group_by_normalized_name(places: Mapping[str, str]) -> dict[object, list[str]]:
    groups: dict[object, list[str]] = {}
    for key, place in places.items():
        name = _SEPARATORS.sub("", mask_numbers(place)).lower()
        groups.setdefault((name, list_numbers(place)), []).append(key)
    return groups
