"""Missing x unexpected keys -> the change of names that explains them: a wrapper, or a rename."""

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
"""Segments that DataParallel and DDP, torch.compile, FSDP, activation checkpointing, Lightning's
strategies put into keys."""


class Rewrite(Struct, frozen=True):
    """A change of keys that makes more of a file match: segments taken out, or a prefix added."""

    removed: tuple[str, ...]
    """Segments ("module") or a leading prefix ("model.") that the file's keys lose."""
    added: str
    """A prefix that the file's keys gain, "" if none."""
    keys: Mapping[str, str]
    """Key in the file -> key in the module, for those that match only then."""


def find_rewrite(
    missing: list[TensorInfo],
    unexpected: list[TensorInfo],
    expected: Mapping[str, TensorInfo],
    actual: Mapping[str, TensorInfo],
) -> Rewrite | None:
    """Return the change of keys after which most missing tensors are found, or None.

    Segments are whole; a change under which two keys would collide is refused.
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
    """Yield (what to remove, prefix to add), the known wrappers first.

    A wrapper's name may be a real name in this module, so leaving it alone is tried as well.
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
    """Yield the prefixes of whole segments with which most keys begin, longest last."""
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
    """Pair each missing tensor with the one unexpected tensor of its shape that ends like it.

    A pair is made only where both are each other's single best candidate.
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
    """Pair keys by the fingerprint of what they hold: key -> fingerprint on either side.

    Several that hold the same are paired in natural order, where there are as many on both sides.
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
    """Return what a safetensors file says of ties: name -> the key that holds its elements.

    `safetensors.torch.save_model` writes each name as an entry of its own; `migrate` writes all
    into one.
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
"""Above this many tensors of one form, names alone tell too little, and pairing costs too much."""


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
