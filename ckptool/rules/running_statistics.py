"""CheckpointStatistics -> hits: running statistics that nothing trained (CK402, CK403)."""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import dropwhile
from typing import Final

from ckptool.compare.renames import WRAPPERS
from ckptool.model import Checkpoint, StateDict
from ckptool.rules.fixes.state_code import format_update_code, split_common_suffix
from ckptool.rules.registry import Level, Rule, RuleHit, check, hit
from ckptool.values.checkpoint_statistics import CheckpointStatistics
from ckptool.values.statistics import TensorStatistics

_MEAN, _VARIANCE, _BATCHES = "running_mean", "running_var", "num_batches_tracked"


def _list_mean_keys(statistics: CheckpointStatistics) -> list[str]:
    """Return the keys of running means: none, in most checkpoints."""
    if not any(_MEAN in state.last_segments for state in statistics.checkpoint.states):
        return []
    return [key for key in statistics.statistics if key.rpartition(".")[2] == _MEAN]


_WRAPPER_SEGMENTS: Final = frozenset([*WRAPPERS, "model", "shadow", "state_dict"])
"""Key segments that wrap the averaged model within the state of an EMA."""
_StatisticKeys = tuple[str, ...]


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
    for key in _list_mean_keys(statistics):
        prefix = key.removesuffix(_MEAN)
        if key not in stale_keys and _has_default_statistics(statistics, prefix):
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
    totals = Counter(map(_extract_ema_prefix, _list_mean_keys(statistics)))
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
    mean_keys = _list_mean_keys(statistics)
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
