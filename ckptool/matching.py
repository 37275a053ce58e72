"""Missing x unexpected keys -> PrefixRewrite or renames that explain them."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from msgspec import Struct

from ckptool.model import TensorInfo, natural

WRAPPERS: Final = (
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
)
"""Key segments added by DataParallel and DDP, torch.compile, FSDP, activation checkpointing and
Lightning's strategies."""


class Rewrite(Struct, frozen=True):
    """Rewrite of keys that makes more of a file match: segments removed, or a prefix added."""

    removed: tuple[str, ...]
    """Segments ("module") or a leading prefix ("model.") removed from the file's keys."""
    added: str
    """Prefix added to the file's keys; "" if none."""
    keys: Mapping[str, str]
    """Key in the file -> key in the module, for keys that match only after the rewrite."""


def find_rewrite(
    missing: list[TensorInfo],
    unexpected: list[TensorInfo],
    expected: Mapping[str, TensorInfo],
    actual: Mapping[str, TensorInfo],
) -> Rewrite | None:
    """Return the rewrite of keys that resolves most missing tensors; None if none does.

    Only whole segments are rewritten; rewrites that make two keys collide are rejected.
    """
    wanted = {t.key: t for t in missing}
    best: Rewrite | None = None
    for removed, added in _candidates(list(wanted), [t.key for t in unexpected]):
        pairs = {t.key: _rewritten(t.key, removed, added) for t in unexpected}
        found = {
            old: new
            for old, new in pairs.items()
            if new in wanted and wanted[new].shape == actual[old].shape
        }
        collide = len(set(pairs.values())) < len(pairs) or any(
            new in actual and new in expected for new in pairs.values()
        )
        if found and not collide and (best is None or len(found) > len(best.keys)):
            best = Rewrite(removed, added, found)
    return best


def _candidates(missing: list[str], unexpected: list[str]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield (segments to remove, prefix to add), the known wrappers first.

    A wrapper's name may be a real segment of this module, so keeping it is tried too.
    """
    present = {segment for key in unexpected for segment in key.split(".")}
    real = {segment for key in missing for segment in key.split(".")}
    found = tuple(w for w in WRAPPERS if w in present)
    for wrappers in dict.fromkeys((found, tuple(w for w in found if w not in real), ())):
        if wrappers:
            yield wrappers, ""
        for prefix in _leading(_rewritten(key, wrappers, "") for key in unexpected):
            yield (*wrappers, f"{prefix}."), ""
        for prefix in _leading(missing):
            yield wrappers, f"{prefix}."


def _leading(keys: Iterable[str]) -> Iterator[str]:
    """Yield the prefixes (1 to 4 segments) of more than half of the keys, longest last."""
    counts: Counter[str] = Counter()
    total = 0
    for key in keys:
        total += 1
        segments = key.split(".")
        counts.update(".".join(segments[:n]) for n in range(1, min(len(segments), 5)))
    yield from sorted((p for p, n in counts.items() if n * 2 > total), key=len)


def _rewritten(key: str, removed: tuple[str, ...], added: str) -> str:
    prefixes = [r for r in removed if r.endswith(".")]
    kept = ".".join(s for s in key.split(".") if s not in removed)
    for prefix in prefixes:
        kept = kept.removeprefix(prefix)
    return added + kept


def find_renames(missing: list[TensorInfo], unexpected: list[TensorInfo]) -> dict[str, str]:
    """Return missing key -> unexpected key with the same shape and last segment.

    A pair is made only if each is the other's single best candidate, by common trailing segments.
    """
    by_form: dict[object, list[TensorInfo]] = {}
    for tensor in unexpected:
        by_form.setdefault((tensor.shape, _last(tensor.key)), []).append(tensor)
    forms = {key: [t.key for t in group] for key, group in by_form.items()}
    wanted: dict[object, list[str]] = {}
    for tensor in missing:
        wanted.setdefault((tensor.shape, _last(tensor.key)), []).append(tensor.key)
    pairs: dict[str, str] = {}
    for form, keys in wanted.items():
        candidates = forms.get(form, [])
        for key in keys:
            there = _single_best(key, candidates)
            if there is not None and _single_best(there, keys) == key:
                pairs[key] = there
    return pairs


def pair_alike(
    missing: Mapping[str, str], unexpected: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Yield (missing key, unexpected key) with equal fingerprints; both args: key -> fingerprint.

    Several keys with one fingerprint are paired in natural order, if both sides have as many.
    """
    there = _by_content(unexpected)
    for content, keys in _by_content(missing).items():
        found = there.get(content, [])
        if len(keys) == len(found):
            yield from zip(keys, found, strict=True)


def _by_content(held: Mapping[str, str]) -> dict[str, list[str]]:
    keys: dict[str, list[str]] = {}
    for key in sorted(held, key=natural):
        keys.setdefault(held[key], []).append(key)
    return keys


def named_ties(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return tied key -> key that holds its elements, from a safetensors file's metadata.

    `safetensors.torch.save_model` writes one metadata entry per tied key; `migrate` writes all
    into the entry "ckptool.ties", as JSON. Unrelated metadata entries are in the result as well.
    """
    try:
        record = json.loads(metadata.get("ckptool.ties", "{}"))
    except (ValueError, RecursionError):
        record = {}
    kept = record.items() if isinstance(record, dict) else ()
    return dict(metadata) | {name: key for name, key in kept if isinstance(key, str)}


def _last(key: str) -> str:
    return key.rsplit(".", 1)[-1]


_MOST_CANDIDATES: Final = 1000
"""With more tensors of one shape and last segment, pairing by key is ambiguous and slow."""


def _single_best(key: str, candidates: list[str]) -> str | None:
    if not candidates or len(candidates) > _MOST_CANDIDATES:
        return None
    scored = sorted(((_common_tail(key, c), c) for c in candidates), reverse=True)
    if len(scored) > 1 and scored[0][0] == scored[1][0]:
        return None
    return scored[0][1]


def _common_tail(a: str, b: str) -> int:
    count = 0
    for x, y in zip(reversed(a.split(".")), reversed(b.split(".")), strict=False):
        if x != y:
            break
        count += 1
    return count
