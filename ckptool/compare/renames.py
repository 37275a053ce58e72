"""Missing x unexpected keys -> PrefixRewrite or renames that explain them."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

from msgspec import Struct

from ckptool.compare.rename_search.key_patterns import list_numbers, mask_numbers
from ckptool.model import TensorInfo, natural_sort_key

WRAPPERS: Final = (
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
)
"""Key segments added by DataParallel and DDP, torch.compile, FSDP, activation checkpointing and
Lightning's strategies."""


class PrefixRewrite(Struct, frozen=True):
    """Rewrite of keys that makes more of a file match: segments removed, or a prefix added."""

    removed_segments: tuple[str, ...]
    """Segments ("module") or a leading prefix ("model.") removed from the file's keys."""
    added_prefix: str
    """Prefix added to the file's keys; "" if none."""
    key_map: Mapping[str, str]
    """Key in the file -> key in the module, for keys that match only after the rewrite."""
    tied_keys: tuple[str, ...] = ()
    """Missing keys of the module that it ties to one of the keys in `key_map`."""

    @property
    def explained_keys(self) -> frozenset[str]:
        """Keys of the file and of the module that differ because of the rewrite alone."""
        return frozenset((*self.key_map, *self.key_map.values(), *self.tied_keys))

    def rewrite_key(self, key: str) -> str:
        """Return what the rewrite makes of a key of the file."""
        return _rewrite_key(key, self.removed_segments, self.added_prefix)


def find_prefix_rewrite(
    missing: list[TensorInfo],
    unexpected: list[TensorInfo],
    expected: Mapping[str, TensorInfo],
    actual: Mapping[str, TensorInfo],
) -> PrefixRewrite | None:
    """Return the rewrite of keys that resolves most missing tensors; None if none does.

    Only whole segments are rewritten; rewrites that make two keys collide are rejected. Where some
    tensors match as they are, only known wrappers are rewritten: another prefix is then one of a
    subtree that moved.
    """
    is_partial = any(
        key in expected and expected[key].shape == tensor.shape for key, tensor in actual.items()
    )
    missing_by_key = {t.key: t for t in missing}
    best: PrefixRewrite | None = None
    for removed, added in _iter_rewrites(list(missing_by_key), [t.key for t in unexpected]):
        if is_partial and (added or not {*removed} <= {*WRAPPERS}):
            continue
        pairs = {t.key: _rewrite_key(t.key, removed, added) for t in unexpected}
        matches = {
            old: new
            for old, new in pairs.items()
            if new in missing_by_key and missing_by_key[new].shape == actual[old].shape
        }
        has_collision = len(set(pairs.values())) < len(pairs) or any(
            new in actual and new in expected for new in pairs.values()
        )
        if matches and not has_collision and (best is None or len(matches) > len(best.key_map)):
            best = PrefixRewrite(removed, added, matches)
    return best


def find_wrapper_rewrite(
    missing: Collection[str], unexpected: Collection[str]
) -> PrefixRewrite | None:
    """Return the removal of known wrappers by which all unexpected keys become missing ones.

    No shape is compared: of a pruned or widened model none may be the same. None if names differ.
    """
    removed = tuple(w for w in WRAPPERS if any(w in key.split(".") for key in unexpected))
    new_keys = {_rewrite_key(key, removed, "") for key in unexpected}
    is_whole = len(new_keys) == len(unexpected) and new_keys <= {*missing}
    return PrefixRewrite(removed, "", {}) if removed and is_whole else None


def rank_rewrites(missing: Collection[str], unexpected: Collection[str]) -> list[PrefixRewrite]:
    """Return the rewrites that make unexpected keys missing ones, those of most keys first.

    No shape is compared. The removal of known wrappers is among them whatever it matches: a loader
    that renames keys itself expects other names than its module's.
    """
    rewrites: dict[tuple[tuple[str, ...], str], PrefixRewrite] = {}
    for removed, added in _iter_rewrites([*missing], [*unexpected]):
        pairs = {key: _rewrite_key(key, removed, added) for key in unexpected}
        matches = {old: new for old, new in pairs.items() if new in missing}
        is_wrapper = bool(removed) and not added and {*removed} <= {*WRAPPERS}
        if len({*pairs.values()}) == len(pairs) and (matches or is_wrapper):
            rewrites[removed, added] = PrefixRewrite(removed, added, matches)
    return sorted(rewrites.values(), key=lambda rewrite: -len(rewrite.key_map))


def _iter_rewrites(
    missing: list[str], unexpected: list[str]
) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield (segments to remove, prefix to add), the known wrappers first.

    A wrapper's name may be a real segment of this module, so keeping it is tried too.
    """
    file_segments = {segment for key in unexpected for segment in key.split(".")}
    module_segments = {segment for key in missing for segment in key.split(".")}
    present_wrappers = tuple(w for w in WRAPPERS if w in file_segments)
    for wrappers in dict.fromkeys(
        (present_wrappers, tuple(w for w in present_wrappers if w not in module_segments), ())
    ):
        if wrappers:
            yield wrappers, ""
        for prefix in _common_prefixes(_rewrite_key(key, wrappers, "") for key in unexpected):
            yield (*wrappers, f"{prefix}."), ""
        for prefix in _common_prefixes(missing):
            yield wrappers, f"{prefix}."


def _common_prefixes(keys: Iterable[str]) -> Iterator[str]:
    """Yield the prefixes (1 to 4 segments) of more than half of the keys, longest last."""
    counts: Counter[str] = Counter()
    total = 0
    for key in keys:
        total += 1
        segments = key.split(".")
        counts.update(".".join(segments[:n]) for n in range(1, min(len(segments), 5)))
    yield from sorted((p for p, n in counts.items() if n * 2 > total), key=len)


def _rewrite_key(key: str, removed: tuple[str, ...], added: str) -> str:
    prefixes = [r for r in removed if r.endswith(".")]
    new_key = ".".join(s for s in key.split(".") if s not in removed)
    for prefix in prefixes:
        new_key = new_key.removeprefix(prefix)
    return added + new_key


def pair_by_fingerprint(
    missing: Mapping[str, str], unexpected: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Yield (missing key, unexpected key) with equal fingerprints; both args: key -> fingerprint.

    Of several keys with one fingerprint, such as biases of zeros, values do not say which is which:
    only layers of one list are paired, by their numbers.
    """
    unexpected_groups = _group_by_fingerprint(unexpected)
    for fingerprint, keys in _group_by_fingerprint(missing).items():
        unexpected_keys = unexpected_groups.get(fingerprint, [])
        if len(keys) == len(unexpected_keys) == 1:
            yield keys[0], unexpected_keys[0]
        elif _is_layer_list(keys) and _is_layer_list(unexpected_keys):
            by_numbers = {list_numbers(key): key for key in unexpected_keys}
            if by_numbers.keys() == {*map(list_numbers, keys)}:
                yield from ((key, by_numbers[list_numbers(key)]) for key in keys)


def _is_layer_list(keys: Collection[str]) -> bool:
    """Whether the keys differ in numbers only."""
    return len({mask_numbers(key) for key in keys}) == 1


def _group_by_fingerprint(fingerprints: Mapping[str, str]) -> dict[str, list[str]]:
    keys: dict[str, list[str]] = {}
    for key in sorted(fingerprints, key=natural_sort_key):
        keys.setdefault(fingerprints[key], []).append(key)
    return keys
