"""Missing x unexpected keys -> PrefixRewrite or renames that explain them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from msgspec import Struct

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


def find_prefix_rewrite(
    missing: list[TensorInfo],
    unexpected: list[TensorInfo],
    expected: Mapping[str, TensorInfo],
    actual: Mapping[str, TensorInfo],
) -> PrefixRewrite | None:
    """Return the rewrite of keys that resolves most missing tensors; None if none does.

    Only whole segments are rewritten; rewrites that make two keys collide are rejected.
    """
    missing_by_key = {t.key: t for t in missing}
    best: PrefixRewrite | None = None
    for removed, added in _iter_rewrites(list(missing_by_key), [t.key for t in unexpected]):
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


def find_renames(missing: list[TensorInfo], unexpected: list[TensorInfo]) -> dict[str, str]:
    """Return missing key -> unexpected key with the same shape and last segment.

    A pair is made only if each is the other's single best candidate, by common trailing segments.
    """
    tensors_by_form: dict[object, list[TensorInfo]] = {}
    for tensor in unexpected:
        tensors_by_form.setdefault((tensor.shape, _last_segment(tensor.key)), []).append(tensor)
    candidate_keys = {key: [t.key for t in group] for key, group in tensors_by_form.items()}
    missing_keys: dict[object, list[str]] = {}
    for tensor in missing:
        missing_keys.setdefault((tensor.shape, _last_segment(tensor.key)), []).append(tensor.key)
    pairs: dict[str, str] = {}
    for form, keys in missing_keys.items():
        candidates = candidate_keys.get(form, [])
        for key in keys:
            best_candidate = _find_single_best(key, candidates)
            if best_candidate is not None and _find_single_best(best_candidate, keys) == key:
                pairs[key] = best_candidate
    return pairs


def pair_by_fingerprint(
    missing: Mapping[str, str], unexpected: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Yield (missing key, unexpected key) with equal fingerprints; both args: key -> fingerprint.

    Several keys with one fingerprint are paired in natural order, if both sides have as many.
    """
    unexpected_groups = _group_by_fingerprint(unexpected)
    for fingerprint, keys in _group_by_fingerprint(missing).items():
        unexpected_keys = unexpected_groups.get(fingerprint, [])
        if len(keys) == len(unexpected_keys):
            yield from zip(keys, unexpected_keys, strict=True)


def _group_by_fingerprint(fingerprints: Mapping[str, str]) -> dict[str, list[str]]:
    keys: dict[str, list[str]] = {}
    for key in sorted(fingerprints, key=natural_sort_key):
        keys.setdefault(fingerprints[key], []).append(key)
    return keys


def _last_segment(key: str) -> str:
    return key.rsplit(".", 1)[-1]


_MAX_CANDIDATES: Final = 1000
"""With more tensors of one shape and last segment, pairing by key is ambiguous and slow."""


def _find_single_best(key: str, candidates: list[str]) -> str | None:
    if not candidates or len(candidates) > _MAX_CANDIDATES:
        return None
    scored_candidates = sorted(((_count_common_tail(key, c), c) for c in candidates), reverse=True)
    if len(scored_candidates) > 1 and scored_candidates[0][0] == scored_candidates[1][0]:
        return None
    return scored_candidates[0][1]


def _count_common_tail(a: str, b: str) -> int:
    count = 0
    for x, y in zip(reversed(a.split(".")), reversed(b.split(".")), strict=False):
        if x != y:
            break
        count += 1
    return count
