"""CheckpointStatistics, ModuleDiff, ContractDiff -> hits: suspicious values (CK4xx, CK213)."""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import dropwhile
from math import inf
from typing import Final

from ckptool.compare.contracts.contract_diff import ContractDiff
from ckptool.compare.module_diff import ModuleDiff
from ckptool.compare.renames import WRAPPERS
from ckptool.model import Checkpoint, StateDict
from ckptool.phrases import quote_shell
from ckptool.rules.fixes.state_code import format_update_code, split_common_suffix
from ckptool.rules.registry import Level, Rule, RuleHit, check, check_other_subject, hit
from ckptool.rules.release_contract import describe_acceptance
from ckptool.values.checkpoint_statistics import CheckpointStatistics
from ckptool.values.statistics import TensorStatistics

_SENTINEL_NAMES: Final = frozenset(
    ["min_val", "max_val", "best_score", "best_model_score", "kth_value", "best"]
)
"""Names in observers and callbacks that start as an infinity; the first batch replaces it."""
_HUGE_MAGNITUDE, _LARGE_MAGNITUDE, _TINY_MAGNITUDE = 1e30, 1e10, 1e-30
_GARBAGE_DTYPES: Final = frozenset(["float32", "bfloat16", "float64", "complex64", "complex128"])
"""Dtypes checked by CK405. Not float16: it ends at 65504 and is denormal below 6e-5."""
_MEAN, _VARIANCE, _BATCHES = "running_mean", "running_var", "num_batches_tracked"
_WRAPPER_SEGMENTS: Final = frozenset([*WRAPPERS, "model", "shadow", "state_dict"])
"""Key segments that wrap the averaged model within the state of an EMA."""
_StatisticKeys = tuple[str, ...]


def _get_last_segment(key: str) -> str:
    return key.rpartition(".")[2]


@check(
    CheckpointStatistics,
    Rule(
        code="CK401",
        name="non-finite",
        level=Level.ERROR,
        summary=(
            "`{key}` has {nan} NaN and {infinite} infinite of {numel} values, the first at {where}"
        ),
        why=(
            "One NaN spreads to every output that depends on it. It comes from a run that "
            "diverged, a cast that overflowed or a damaged file. Masks, whose values are only 0 "
            "and -inf, and the infinity that an observer or a callback starts from are not "
            "reported."
        ),
        fix="Go back to an earlier checkpoint; which tensors changed since: {command}",
        general_advice=(
            "Go back to an earlier checkpoint; `ckptool diff OLD NEW` shows which tensors changed."
        ),
        example=(
            'state["head.weight"] = torch.tensor([1.0, float("nan")])\n'
            'torch.save(state, "model.pth")  # ckptool inspect --values'
        ),
    ),
)
def find_non_finite_values(statistics: CheckpointStatistics) -> Iterator[RuleHit]:
    command = f"ckptool diff EARLIER {quote_shell(str(statistics.checkpoint.path))}"
    for key, tensor_statistics in statistics.statistics.items():
        if (
            tensor_statistics.nan_count or tensor_statistics.infinite_count
        ) and not _is_intended_infinity(key, tensor_statistics):
            position = _unravel_index(
                tensor_statistics.first_nonfinite, statistics.tensors[key].shape
            )
            yield hit(
                key,
                nan=tensor_statistics.nan_count,
                infinite=tensor_statistics.infinite_count,
                numel=tensor_statistics.numel,
                where=position,
                command=command,
            )


def _is_intended_infinity(key: str, tensor_statistics: TensorStatistics) -> bool:
    """Whether the infinities belong to a mask or are an initial value before the first batch."""
    if tensor_statistics.nan_count or tensor_statistics.distinct_values is None:
        return False
    is_mask = set(tensor_statistics.distinct_values) == {0.0, -inf}
    return is_mask or (
        len(tensor_statistics.distinct_values) == 1 and _get_last_segment(key) in _SENTINEL_NAMES
    )


def _unravel_index(flat_index: int, shape: tuple[int, ...]) -> list[int]:
    """Return the index, one number a dimension, of an element given its offset in C order."""
    index: list[int] = []
    for size in reversed(shape):
        flat_index, coordinate = divmod(flat_index, size)
        index.insert(0, coordinate)
    return index


@check(
    CheckpointStatistics,
    Rule(
        code="CK402",
        name="default-norm-stats",
        level=Level.WARNING,
        gate=Level.ERROR,
        summary=(
            "`{key}` is all 0 and `{variance}` all 1, as before the first batch, while `{trained}`"
            " is trained"
        ),
        why=(
            "In eval() the layer normalises with these values. They stay at their defaults if a "
            "copy (EMA, a converter) takes only the parameters, or if training ran in eval mode: "
            "the accuracy collapses without an error."
        ),
        fix=(
            "Copy the statistics from a checkpoint that has them, or compute them from the "
            "training data: torch.optim.swa_utils.update_bn(loader, model)"
        ),
        example=(
            "bn = nn.BatchNorm1d(4)\n"
            "bn.weight.data.uniform_()  # trained, but never run in train() mode\n"
            'torch.save(bn.state_dict(), "model.pth")'
        ),
    ),
)
def find_default_norm_statistics(statistics: CheckpointStatistics) -> Iterator[RuleHit]:
    stale_keys = {key for _, keys, _ in _find_stale_averages(statistics) for key in keys}
    for key in statistics.statistics:
        prefix = key.removesuffix(_MEAN)
        if (
            _get_last_segment(key) == _MEAN
            and key not in stale_keys
            and _has_default_statistics(statistics, prefix)
        ):
            names = (f"{prefix}weight", f"{prefix}bias")
            trained_key = next(
                (name for name in names if _is_trained(statistics.statistics.get(name))), None
            )
            if trained_key:
                yield hit(key, variance=f"{prefix}{_VARIANCE}", trained=trained_key)


def _has_default_statistics(statistics: CheckpointStatistics, prefix: str) -> bool:
    """Whether the running statistics of a layer are still the initial 0 and 1."""
    mean, variance, batches = (
        statistics.statistics.get(prefix + name) for name in (_MEAN, _VARIANCE, _BATCHES)
    )
    is_initial = (
        mean is not None
        and mean.is_constant(0)
        and variance is not None
        and variance.is_constant(1)
    )
    return is_initial and (batches is None or batches.is_constant(0))


def _is_trained(tensor_statistics: TensorStatistics | None) -> bool:
    """Whether the parameter differs from the initial all ones or all zeros; False if None."""
    if tensor_statistics is None or tensor_statistics.nan_count:
        return False
    has_several_values = (
        tensor_statistics.distinct_values is None or len(tensor_statistics.distinct_values) > 1
    )
    return has_several_values or (
        tensor_statistics.numel == 1 and tensor_statistics.constant_value not in {0.0, 1.0}
    )


@check(
    CheckpointStatistics,
    Rule(
        code="CK403",
        name="ema-buffers-stale",
        level=Level.WARNING,
        summary=(
            "`{key}` keeps {stale} of {total} running statistics at their defaults, while those of"
            " the raw weights are not"
        ),
        detail="`{example}`, but `{raw}`",
        why=(
            "The averaging loop iterates over parameters() only. The averaged weights, which are "
            "the ones that people use, then normalise with a mean of 0 and a variance of 1."
        ),
        fix=(
            "Copy the buffers too, both when averaging and into this file: "
            "torch.optim.swa_utils.AveragedModel(model, use_buffers=True), and {code}"
        ),
        general_advice=(
            "Copy the buffers too, both when averaging and into this file: "
            "torch.optim.swa_utils.AveragedModel(model, use_buffers=True), and "
            'checkpoint["ema"].update({k: v for k, v in checkpoint["model"].items() if '
            '"running_" in k})'
        ),
        example=(
            "for p, q in zip(model.parameters(), ema.parameters()):\n"
            "    q.data.lerp_(p.data, 0.01)  # and nothing for model.buffers()\n"
            'torch.save({"model": model.state_dict(), "ema": ema.state_dict()}, "m.ckpt")'
        ),
    ),
)
def find_stale_ema_buffers(statistics: CheckpointStatistics) -> Iterator[RuleHit]:
    totals = Counter(
        _extract_ema_prefix(key) for key in statistics.statistics if _get_last_segment(key) == _MEAN
    )
    for ema_prefix, keys, raw_key in _find_stale_averages(statistics):
        yield hit(
            ema_prefix,
            stale=len(keys),
            total=totals[ema_prefix],
            example=keys[0],
            raw=raw_key,
            code=_format_buffer_copy(statistics.checkpoint, keys[0], raw_key),
        )


def _format_buffer_copy(checkpoint: Checkpoint, stale_key: str, raw_key: str) -> str:
    """Return the statement that copies the running statistics of all layers into the average.

    Args:
        checkpoint: the file with both states.
        stale_key: running mean of one layer of the average, from the root of the file.
        raw_key: that of the raw weights.
    """
    stale_state, raw_state = _find_state(checkpoint, stale_key), _find_state(checkpoint, raw_key)
    prefixes = split_common_suffix(
        _get_key_within(stale_state, stale_key), _get_key_within(raw_state, raw_key)
    )
    names = (_MEAN, _VARIANCE, _BATCHES)
    return format_update_code(stale_state.at, raw_state.at, prefixes, names)


def _find_state(checkpoint: Checkpoint, key: str) -> StateDict:
    return next(s for s in checkpoint.states if _get_key_within(s, key) in s.tensors)


def _get_key_within(state: StateDict, key: str) -> str:
    """Return a key from the root of the file as a key of `state`, if it begins with its place."""
    return key.removeprefix(f"{state.at}.") if state.at else key


def _find_stale_averages(
    statistics: CheckpointStatistics,
) -> Iterator[tuple[str, _StatisticKeys, str]]:
    """Yield (prefix, keys, raw key) for each averaged state with stale running statistics.

    The keys are running means at their defaults; the raw key is the trained mean of one layer.
    """
    mean_keys = [key for key in statistics.statistics if _get_last_segment(key) == _MEAN]
    raw_keys = [
        raw_key
        for raw_key in mean_keys
        if not _extract_ema_prefix(raw_key)
        and not _has_default_statistics(statistics, raw_key.removesuffix(_MEAN))
    ]
    reversed_raw_keys = sorted(key[::-1] for key in raw_keys)
    stale_by_prefix: dict[str, dict[str, str]] = {}
    for key in mean_keys:
        if (ema_prefix := _extract_ema_prefix(key)) and _has_default_statistics(
            statistics, key.removesuffix(_MEAN)
        ):
            inner_key = key[len(ema_prefix) :].removeprefix(".")
            if raw_key := _find_raw_key(inner_key, reversed_raw_keys):
                stale_by_prefix.setdefault(ema_prefix, {})[key] = raw_key
    for ema_prefix, raw_by_stale_key in stale_by_prefix.items():
        yield ema_prefix, tuple(raw_by_stale_key), next(iter(raw_by_stale_key.values()))


def _extract_ema_prefix(key: str) -> str:
    """Return the key up to and including its last segment that contains "ema"; "" without one."""
    segments = key.split(".")
    indices = [
        index
        for index, segment in enumerate(segments)
        if re.search(r"(?i:(?<![a-z])ema(?![a-z]))|EMA", segment)
    ]
    return ".".join(segments[: indices[-1] + 1]) if indices else ""


def _find_raw_key(inner_key: str, reversed_raw_keys: Sequence[str]) -> str:
    """Return a raw key of the same layer as `inner_key`, a key within the averaged model.

    That is a key that ends with it, wrapper segments at its start apart; "" if there is none.
    `reversed_raw_keys` are the raw keys written backwards, sorted: each search is a bisection.
    """
    segments = inner_key.split(".")
    unwrapped_key = ".".join(dropwhile(_WRAPPER_SEGMENTS.__contains__, segments))
    for name in (inner_key, unwrapped_key):
        for start in (name[::-1], f"{name[::-1]}."):
            position = bisect_left(reversed_raw_keys, start)
            raw_key = reversed_raw_keys[position][::-1] if position < len(reversed_raw_keys) else ""
            if raw_key == name or raw_key.endswith(f".{name}"):
                return raw_key
    return ""


@check(
    CheckpointStatistics,
    Rule(
        code="CK405",
        name="looks-uninitialised",
        level=Level.WARNING,
        summary="`{key}` looks like uninitialised memory",
        detail="magnitudes from {smallest} to {largest}, {denormals} of {numel} values denormal",
        why=(
            "torch.empty, to_empty() and a module that was materialised from meta contain "
            "whatever was in memory before. The signs are magnitudes of 1e30 and more, or "
            "denormals together with magnitudes of 1e10 and more or with tiny values only. "
            "Tensors of one or two distinct values (masks) and optimizer state are not reported."
        ),
        fix=(
            "Initialise it before saving: module.get_submodule({owner:py}).reset_parameters(), or "
            "load a checkpoint that has it."
        ),
        example=(
            'state["proj.weight"] = torch.empty(512, 512)  # never filled in\n'
            'torch.save(state, "model.pth")'
        ),
    ),
)
def find_uninitialised_tensors(statistics: CheckpointStatistics) -> Iterator[RuleHit]:
    for key, tensor_statistics in statistics.statistics.items():
        is_excluded = (
            key in statistics.optimizer_keys or statistics.tensors[key].dtype not in _GARBAGE_DTYPES
        )
        if (
            not is_excluded
            and tensor_statistics.distinct_values is None
            and _looks_uninitialised(tensor_statistics)
        ):
            yield hit(
                key,
                smallest=f"{tensor_statistics.smallest_magnitude:.1e}",
                largest=f"{tensor_statistics.largest_magnitude:.1e}",
                denormals=tensor_statistics.denormal_count,
                numel=tensor_statistics.numel,
                owner=statistics.tensors[key].key.rpartition(".")[0],
            )


def _looks_uninitialised(tensor_statistics: TensorStatistics) -> bool:
    """Whether the magnitudes are those of uninitialised memory."""
    is_out_of_range = (
        tensor_statistics.largest_magnitude >= _LARGE_MAGNITUDE
        or tensor_statistics.largest_magnitude < _TINY_MAGNITUDE
    )
    return tensor_statistics.largest_magnitude >= _HUGE_MAGNITUDE or (
        tensor_statistics.denormal_count > 0 and is_out_of_range
    )


@check(
    ModuleDiff,
    Rule(
        code="CK404",
        name="half-rounded-buffer",
        level=Level.WARNING,
        summary="`{key}` is in the file as the module computes it, but rounded to {dtype}",
        why=(
            "model.half() and model.to(bfloat16) round buffers too: frequencies of a rotary "
            "embedding, tables of positions. Loading replaces the exact values by rounded ones, "
            "and a cast back to float32 does not restore them."
        ),
        fix=(
            "Cast parameters only. To keep the module's own value: state_dict.pop({key:py}), and "
            "load with strict=False."
        ),
        example=(
            "model.half()  # inv_freq is rounded as well\n"
            "model.float()\n"
            'torch.save(model.state_dict(), "model.pth")'
        ),
    ),
)
def find_half_rounded_buffers(diff: ModuleDiff) -> Iterator[RuleHit]:
    for key in diff.constant_fingerprints:
        if dtype := _find_rounded_dtype(diff, key):
            yield hit(key, dtype=dtype)


def _find_rounded_dtype(diff: ModuleDiff, key: str) -> str:
    """Return the 16-bit dtype to which the file rounds the module's value; "" if to none."""
    module_tensor = diff.module.tensors[key]
    dtypes = (
        dtype
        for dtype, fingerprint in module_tensor.half_precision_fingerprints.items()
        if fingerprint in diff.constant_fingerprints[key]
    )
    return next(dtypes, "")


@check(
    ModuleDiff,
    Rule(
        code="CK213",
        name="checkpoint-overrides-config",
        level=Level.WARNING,
        summary="`{key}` in the file differs from the value the constructor computes",
        detail="loading replaces it by the file's value",
        why=(
            "A buffer that the constructor always computes in the same way is part of the "
            "configuration: anchors, masks, frequencies. If the arguments were changed "
            "deliberately, the file silently undoes that; if not, the model is not the one that "
            "was trained. Buffers that start as zeros or ones are not reported: they are filled "
            "from data."
        ),
        fix=(
            "Build the module with the arguments it was trained with; if the new value is "
            "intended, state_dict.pop({key:py}) and load with strict=False."
        ),
        example=(
            "old = Attention(window=4)  # its mask is [4, 4] of the same shape as ...\n"
            'torch.save(old.state_dict(), "old.pth")\n'
            'Attention(window=4, causal=False).load_state_dict(torch.load("old.pth"))'
        ),
    ),
)
def find_config_overrides(diff: ModuleDiff) -> Iterator[RuleHit]:
    for key, fingerprints in diff.constant_fingerprints.items():
        module_tensor, tensor = diff.module.tensors[key], diff.state.tensors[key]
        is_same_dtype = tensor.dtype == module_tensor.tensor.dtype
        if (
            is_same_dtype
            and module_tensor.fingerprint not in fingerprints
            and not _find_rounded_dtype(diff, key)
        ):
            yield hit(key, where=module_tensor.assigned_at, owner=module_tensor.owner)


@check_other_subject(
    ContractDiff,
    "CK213",
    summary="the constructor computes a different value for `{key}` {form} than in {old}",
    detail="{effect}",
    fix="{remedy}",
)
def find_changed_constants(diff: ContractDiff) -> Iterator[RuleHit]:
    for key in diff.changed_constants:
        entry = diff.new.entries[key]
        yield hit(
            key,
            Level.ERROR,
            form=entry.type_description,
            old=diff.old.name,
            effect="loading an old file brings back the old value"
            if entry.saved
            else "no file contains it, so old weights are run with the new value",
            remedy=f"Restore the value of the training run.{describe_acceptance(diff)}",
        )
