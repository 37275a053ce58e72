"""RenameLinks of one change -> RenameGroup: its patterns, its pairs and its evidence."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.compare.rename_search.alike import SQUARE
from ckptool.compare.rename_search.key_patterns import generalize_numbers, mask_numbers
from ckptool.compare.rename_search.links import LinkKind, RenameLink, Tensors
from ckptool.model import Kind, ModuleTensor, StateDict, natural_sort_key, tied_keys
from ckptool.phrases import join_limited, pluralize, quote_code

_MAX_NAMED_ALTERNATIVES: Final = 3
"""Maximum number of alternatives that the evidence names; the others are counted."""


class RenameGroup(Struct, frozen=True):
    """Renames that one change of the code explains: a subtree, a pattern of keys, a renumbering."""

    old_pattern: str
    """Of the keys in the file: "backbone.*", "layers.*.norm.1.*", "net.{0,2}.*"."""
    new_pattern: str
    """Of the keys in the module: "encoder.*", "layers.*.norm1.*", "net.{0,1}.*"."""
    pairs: Mapping[str, str]
    """Key in the file -> key in the module, in natural order. The patterns are for people: they may
    match other keys too (`key_patterns.is_exact_pattern` tells)."""
    evidence: str
    """One clause for a person: "6 tensors of the same shapes, the only such subtree"."""
    is_unambiguous: bool
    """Whether nothing else in file or module would fit as well."""
    transposed_keys: tuple[str, ...] = ()
    """Keys of the file whose tensor has the module's shape only after its two dimensions are
    swapped, or, if it is square, whose siblings have."""
    is_documented: bool = False
    """Whether the library documents the new names, so that nothing is guessed."""

    tied_keys: tuple[str, ...] = ()
    """Missing keys of the module that are tied to one of its keys in `pairs`."""

    @property
    def keys(self) -> frozenset[str]:
        """All keys of the file and of the module that the group explains."""
        return frozenset((*self.pairs, *self.pairs.values(), *self.tied_keys))


def group_renames(renames: Mapping[str, str]) -> tuple[RenameGroup, ...]:
    """Return known renames as groups, one for each replacement of segments in the keys."""
    links = (RenameLink(a, b, {a: b}, LinkKind.SUBTREE) for a, b in renames.items())
    return tuple(build_group(joined) for joined in join_links(links))


def join_pairs(groups: Iterable[RenameGroup]) -> dict[str, str]:
    """Return old key -> new key of all groups."""
    return {old: new for group in groups for old, new in group.pairs.items()}


def join_links(links: Iterable[RenameLink]) -> Iterator[list[RenameLink]]:
    """Yield lists of links that one change explains: the same segments are replaced by the same."""
    joined: dict[object, list[RenameLink]] = {}
    for number, link in enumerate(links):
        edit = _find_prefix_edit(link) or _split_edit(link)
        key = number if link.is_complete else (edit, bool(link.alternatives), link.detail)
        joined.setdefault(key, []).append(link)
    yield from joined.values()


def _find_prefix_edit(link: RenameLink) -> tuple[str, str] | None:
    """Return the patterns of a prefix that one side's keys have and the other's do not, or None."""
    if link.kind is not LinkKind.SUBTREE:
        return None
    if link.old.endswith(f".{link.new}"):
        return link.old.removesuffix(link.new) + "*", "*"
    if link.new.endswith(f".{link.old}"):
        return "*", link.new.removesuffix(link.old) + "*"
    return None


def _split_edit(link: RenameLink) -> tuple[str, str, str]:
    """Return (prefix, segments replaced, segments that replace them), of the two patterns."""
    old, new = link.old.split("."), link.new.split(".")
    limit = min(len(old), len(new))
    tail = 0
    while tail < limit and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    head = 0
    while head < limit - tail and old[head] == new[head]:
        head += 1
    if tail and head + tail in {len(old), len(new)}:
        tail -= 1
    return (
        mask_numbers(".".join(old[:head])),
        ".".join(old[head : len(old) - tail]),
        ".".join(new[head : len(new) - tail]),
    )


def build_group(links: list[RenameLink]) -> RenameGroup:
    """Build the group of links that one change explains."""
    pairs = {old: new for link in links for old, new in link.pairs.items()}
    pairs = {old: pairs[old] for old in sorted(pairs, key=natural_sort_key)}
    old_pattern, new_pattern = links[0].old, links[0].new
    if len(pairs) == 1:
        old_pattern, new_pattern = next(iter(pairs.items()))
    elif len(links) > 1 and (prefix_edit := _find_prefix_edit(links[0])):
        old_pattern, new_pattern = prefix_edit
    elif not links[0].is_complete:
        head, old_middle, new_middle = _split_edit(links[0])
        counts = [
            len([segment for segment in (*head.split("."), *middle.split(".")) if segment])
            for middle in (old_middle, new_middle)
        ]
        old_pattern, new_pattern = _format_patterns(pairs, *counts)
    alternatives = tuple(dict.fromkeys(a for link in links for a in link.alternatives))
    return RenameGroup(
        old_pattern,
        new_pattern,
        pairs,
        _describe_evidence(links, len(pairs), alternatives),
        is_unambiguous=not alternatives,
        transposed_keys=tuple(key for link in links for key in link.transposed_keys),
    )


def _format_patterns(pairs: Mapping[str, str], old_count: int, new_count: int) -> tuple[str, str]:
    """Return the patterns of keys whose first segments, so many, are replaced."""
    old_keys, new_keys = (
        [key.split(".") for key in pairs],
        [key.split(".") for key in pairs.values()],
    )
    tails = {".".join(segments[old_count:]) for segments in old_keys}
    tail = tails.pop() if len(tails) == 1 else "*"
    return (
        ".".join(filter(None, (_generalize_heads(old_keys, old_count), tail))),
        ".".join(filter(None, (_generalize_heads(new_keys, new_count), tail))),
    )


def _generalize_heads(keys: Iterable[Sequence[str]], count: int) -> str:
    return generalize_numbers(".".join(segments[:count]) for segments in keys)


def _describe_evidence(
    links: Sequence[RenameLink], count: int, alternatives: tuple[str, ...]
) -> str:
    """Return the evidence of a group as one clause."""
    kinds = {link.kind for link in links}
    kind = next(iter(kinds)) if len(kinds) == 1 else LinkKind.MODULE
    tensors, shapes = pluralize(count, "tensor"), "shape" if count == 1 else "shapes"
    transposed = any(link.transposed_keys for link in links)
    fit = f"{tensors} of the same {shapes}"
    if transposed:
        fit = f"{tensors} of the same {shapes} with the two dimensions swapped"
    detail = links[0].detail
    if kind is LinkKind.ORDER:
        text = f"{fit} in the same order" + (f", renumbered {detail}" if detail else "")
    elif kind is LinkKind.NAME:
        text = f"{fit}, whose names differ only in punctuation or case"
    elif kind is LinkKind.SUBTREE:
        total = f"{count:,} {detail} tensors, of the same shapes" if detail else fit
        text = total if alternatives else f"{total}, the only such subtree"
    else:
        text = fit if alternatives else f"{fit}, and nothing else matches"
    if not alternatives:
        return text
    if SQUARE in alternatives:
        return f"{text}; {SQUARE}"
    quoted = [a if " " in a else quote_code(a) for a in alternatives]
    named = join_limited(quoted, _MAX_NAMED_ALTERNATIVES, more=" or {} others")
    named = " or ".join(named.split(", "))
    is_single = len(alternatives) == 1 and " " not in alternatives[0]
    return f"{text}; {named} {'fits' if is_single else 'fit'} as well"


def add_tied_keys(
    groups: Sequence[RenameGroup], missing: Tensors, saved_tensors: Mapping[str, ModuleTensor]
) -> Iterator[RenameGroup]:
    """Yield the groups with the missing keys that the module ties to keys of theirs."""
    ties = tied_keys(module_tensor.tensor for module_tensor in saved_tensors.values())
    partners = {key: tie for tie in ties for key in tie}
    renamed = {new for group in groups for new in group.pairs.values()}
    for group in groups:
        tied = dict.fromkeys(
            key
            for new in group.pairs.values()
            for key in partners.get(new, ())
            if key in missing and key not in renamed
        )
        renamed |= {*tied}
        yield replace(group, tied_keys=tuple(tied)) if tied else group


def build_documented_groups(
    pairs: Mapping[str, str], names: Mapping[str, str]
) -> Iterator[RenameGroup]:
    """Yield a group for each old name of a LayerNorm's parameter.

    Args:
        pairs: key in the module -> key in the file.
        names: old name -> new name.
    """
    for old_name, new_name in names.items():
        group = {old: new for new, old in pairs.items() if old.rpartition(".")[2] == old_name}
        keys = sorted(group, key=natural_sort_key)
        if keys:
            is_single = len(keys) == 1
            yield RenameGroup(
                keys[0] if is_single else f"*.{old_name}",
                group[keys[0]] if is_single else f"*.{new_name}",
                {key: group[key] for key in keys},
                "an old name of a LayerNorm's parameter",
                is_unambiguous=True,
                is_documented=True,
            )


def find_list_group(
    state: StateDict, saved_tensors: Mapping[str, ModuleTensor]
) -> RenameGroup | None:
    """Return the group of a list without names that is `parameters()` in order; None if it is none.

    An average of weights (EMA) is saved so: the list has all parameters, those that are trained, or
    all values of the state_dict.
    """
    keys = [*state.tensors]
    if not keys or sorted(keys, key=natural_sort_key) != [str(n) for n in range(len(keys))]:
        return None
    if any(key in saved_tensors for key in keys):
        return None
    parameters = [t for t in saved_tensors.values() if t.kind is Kind.PARAMETER]
    tied = {key for group in tied_keys(t.tensor for t in parameters) for key in group[1:]}
    parameters = [t for t in parameters if t.key not in tied]
    trained = [t for t in parameters if t.tensor.requires_grad]
    for label, candidates in (
        ("parameters()", parameters),
        ("the trained parameters()", trained),
        ("state_dict().values()", [*saved_tensors.values()]),
    ):
        shapes = [t.tensor.shape for t in candidates]
        if shapes == [state.tensors[str(n)].shape for n in range(len(keys))]:
            name = state.at.rpartition(".")[2]
            return RenameGroup(
                f"{name}.*" if name else "*",
                f"{label} in order",
                {str(n): t.key for n, t in enumerate(candidates)},
                f"the {len(keys):,} tensors of the list have the shapes of {label}, in order",
                is_unambiguous=True,
            )
    return None
