"""Missing x unexpected tensors -> PartMatch: one side is one sub-tree of the other."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Final

from msgspec import Struct

from ckptool.compare.renames import WRAPPERS
from ckptool.model import Kind, ModuleInfo, TensorInfo, natural_sort_key, tied_keys

_MIN_SHARE: Final = 0.8
"""Share (0 to 1) of the keys of both the part and the sub-tree that have to match."""
_MAX_DEPTH: Final = 12
"""Maximum segments of the prefix of a part."""
_MAX_REMOVED_SEGMENTS: Final = 4
_SAMPLE_COUNT: Final = 5
"""Number of keys by which candidate prefixes are found."""

_AUXILIARY_NAMES: Final = frozenset(
    [
        "criterion",
        "loss",
        "loss_fn",
        "loss_fct",
        "metric",
        "metrics",
        "lpips",
        "perceptual_loss",
        "teacher",
        "evaluator",
    ]
)


class PartSide(StrEnum):
    """Which side of a comparison is the part of the other."""

    FILE = "file"
    """The file is the state of one sub-module."""
    MODULE = "module"
    """The module is what the file has below a prefix, beside other parts."""


class PartMatch(Struct, frozen=True):
    """One side of a comparison whose keys and shapes are those of one sub-tree of the other."""

    side: PartSide
    prefixes: tuple[str, ...]
    """The sub-tree, without a final dot; several, in natural order, that fit equally well."""
    removed_segments: tuple[str, ...]
    """Segments or a leading prefix ("model.") of the part's keys that the sub-tree lacks."""
    key_map: Mapping[str, str]
    """Key in the file -> key in the module, for the first of `prefixes`."""
    other_keys: tuple[str, ...]
    """Keys of the larger side that are not below the first of `prefixes`."""
    sibling_count: int
    """Number of sub-trees beside one another at this place, the part included."""

    @property
    def prefix(self) -> str:
        return self.prefixes[0]

    @property
    def is_unique(self) -> bool:
        return len(self.prefixes) == 1

    @property
    def explained_keys(self) -> frozenset[str]:
        return frozenset((*self.key_map, *self.key_map.values(), *self.other_keys))


def find_file_part(
    missing: Mapping[str, TensorInfo],
    unexpected: Mapping[str, TensorInfo],
    module: ModuleInfo,
    file_count: int,
) -> PartMatch | None:
    """Return the sub-module whose state the file is; None if it is that of no single one.

    None too where the rest of the module needs nothing of the file: what the constructor makes
    again, or what is tied to the part.

    Args:
        missing: tensors of the module that the file lacks, by key.
        unexpected: tensors of the file that the module lacks, by key.
        module: the module.
        file_count: number of tensors of the file.
    """
    if not (missing and unexpected) or len(unexpected) < _MIN_SHARE * file_count:
        return None
    for removed in _iter_removed_segments(unexpected):
        renamed = {_remove_segments(key, removed): key for key in unexpected}
        part = {new: unexpected[old] for new, old in renamed.items()}
        prefixes = _find_prefixes(part, missing, file_count)
        if prefixes:
            prefix = f"{prefixes[0]}."
            needed = _list_needed_keys(module, missing, prefix)
            if not needed:
                return None
            return PartMatch(
                PartSide.FILE,
                prefixes,
                removed,
                {
                    renamed[key]: prefix + key
                    for key, tensor in part.items()
                    if _has_shape(missing, prefix + key, tensor)
                },
                tuple(key for key in missing if not key.startswith(prefix)),
                _count_siblings(module.saved_tensors, prefixes[0]),
            )
    return None


def find_module_part(
    missing: Mapping[str, TensorInfo],
    unexpected: Mapping[str, TensorInfo],
    file_keys: Iterable[str],
    module_count: int,
) -> PartMatch | None:
    """Return the prefix below which the file has the module's state; None if there is no such part.

    A wrapper's prefix is no part, and neither are single keys or a loss beside the model.

    Args:
        missing: tensors of the module that the file lacks, by key.
        unexpected: tensors of the file that the module lacks, by key.
        file_keys: all keys of the file.
        module_count: number of tensors that the module saves.
    """
    if not (missing and unexpected) or len(missing) < _MIN_SHARE * module_count:
        return None
    prefixes = _find_prefixes(missing, unexpected, module_count)
    if not prefixes or all(segment in WRAPPERS for segment in prefixes[0].split(".")):
        return None
    prefix = f"{prefixes[0]}."
    other_keys = [
        key for key in unexpected if not key.startswith(prefix) and not has_auxiliary_name(key)
    ]
    parent = prefixes[0].rpartition(".")[0]
    if not any("." in key.removeprefix(f"{parent}." if parent else "") for key in other_keys):
        return None
    return PartMatch(
        PartSide.MODULE,
        prefixes,
        (prefix,),
        {
            prefix + key: key
            for key, tensor in missing.items()
            if _has_shape(unexpected, prefix + key, tensor)
        },
        tuple(other_keys),
        _count_siblings(file_keys, prefixes[0]),
    )


def has_auxiliary_name(key: str) -> bool:
    """Whether a segment of `key` has a usual name of a loss, a metric or a frozen judge."""
    return any(
        segment in _AUXILIARY_NAMES or segment.endswith(("_metric", "_metrics", "_loss"))
        for segment in key.split(".")[:-1]
    )


def _find_prefixes(
    part: Mapping[str, TensorInfo], whole: Mapping[str, TensorInfo], part_count: int
) -> tuple[str, ...]:
    """Return the prefixes below which `whole` has most of `part`, if that is nearly all of both.

    A candidate has about as many keys as the part, so that all of them together are looked at
    in time proportional to `whole`.
    """
    samples = [f".{key}" for key in _select_samples(part)]
    candidates = {
        key.removesuffix(sample)
        for key in whole
        for sample in samples
        if key.endswith(sample) and key != sample
    }
    counts = _count_prefixes(whole) if candidates else {}
    scores: dict[str, int] = {}
    for prefix in candidates:
        count = counts.get(prefix, 0)
        if _MIN_SHARE * part_count <= count and _MIN_SHARE * count <= part_count:
            score = sum(_has_shape(whole, f"{prefix}.{key}", part[key]) for key in part)
            if score >= _MIN_SHARE * max(part_count, count):
                scores[prefix] = score
    best_score = max(scores.values(), default=0)
    best_prefixes = (prefix for prefix, score in scores.items() if score == best_score)
    return tuple(sorted(best_prefixes, key=natural_sort_key))


def _has_shape(tensors: Mapping[str, TensorInfo], key: str, tensor: TensorInfo) -> bool:
    return key in tensors and tensors[key].shape == tensor.shape


def _count_prefixes(keys: Iterable[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for key in keys:
        segments = key.split(".", _MAX_DEPTH)
        counts.update(".".join(segments[:n]) for n in range(1, len(segments)))
    return counts


def _select_samples(keys: Iterable[str]) -> list[str]:
    """Return the keys with most segments: few others end like them."""
    return sorted(keys, key=lambda key: (-key.count("."), key))[:_SAMPLE_COUNT]


def _iter_removed_segments(keys: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """Yield what may have been put into all keys: nothing, wrappers, a common leading prefix."""
    key_list = list(keys)
    yield ()
    segments = {segment for key in key_list for segment in key.split(".", _MAX_DEPTH)}
    wrappers = tuple(wrapper for wrapper in WRAPPERS if wrapper in segments)
    if wrappers:
        yield wrappers
    first = key_list[0].split(".")
    for n in range(1, min(len(first), _MAX_REMOVED_SEGMENTS + 1)):
        prefix = ".".join(first[:n]) + "."
        if not all(key.startswith(prefix) and key != prefix for key in key_list):
            return
        yield (prefix,)


def _remove_segments(key: str, removed: tuple[str, ...]) -> str:
    if len(removed) == 1 and removed[0].endswith("."):
        return key.removeprefix(removed[0])
    return ".".join(segment for segment in key.split(".") if segment not in removed)


def _list_needed_keys(
    module: ModuleInfo, missing: Mapping[str, TensorInfo], prefix: str
) -> list[str]:
    """Return the missing keys outside `prefix` that nothing but another file can fill."""
    tied = {
        key
        for group in tied_keys(t.tensor for t in module.saved_tensors.values())
        if any(name.startswith(prefix) for name in group)
        for key in group
    }
    return [
        key
        for key in missing
        if not key.startswith(prefix)
        and key not in tied
        and not (module.tensors[key].is_recomputable and module.tensors[key].kind is Kind.BUFFER)
    ]


def _count_siblings(keys: Iterable[str], prefix: str) -> int:
    """Return the number of sub-trees with keys that have the same parent as `prefix`."""
    parent = prefix.rpartition(".")[0]
    start = f"{parent}." if parent else ""
    names = {
        name
        for key in keys
        if key.startswith(start)
        for name, dot, _ in [key.removeprefix(start).partition(".")]
        if dot
    }
    return len(names)
