"""CheckpointStatistics, ModuleDiff -> hits: suspicious values (CK401-CK405, CK213)."""

import re
from collections.abc import Iterator
from math import inf
from typing import Final

from ckptool.compare import Loading
from ckptool.figures import Figures
from ckptool.rules.registry import Hit, Level, Rule, check, hit
from ckptool.valued import Valued

_SENTINELS: Final = frozenset(
    ["min_val", "max_val", "best_score", "best_model_score", "kth_value", "best"]
)
"""Names in observers and callbacks that start as an infinity; the first batch replaces it."""
_HUGE, _LARGE, _TINY = 1e30, 1e10, 1e-30
_GARBAGE: Final = frozenset(["float32", "bfloat16", "float64", "complex64", "complex128"])
"""Dtypes checked by CK405. Not float16: it ends at 65504 and is denormal below 6e-5."""
_MEAN, _VARIANCE, _BATCHES = "running_mean", "running_var", "num_batches_tracked"
_AROUND: Final = frozenset(["module", "model", "shadow", "state_dict", "_orig_mod"])
"""Key segments that wrap the averaged model within the state of an EMA."""
_Statistics = tuple[str, ...]


def _name(key: str) -> str:
    return key.rpartition(".")[2]


@check(
    Valued,
    Rule(
        code="CK401",
        name="non-finite",
        level=Level.ERROR,
        message="`{key}` has {nan} NaN and {infinite} infinite of {numel} values, the first at "
        "{where}",
        why="One NaN spreads to every output that it touches. It comes from a run that diverged, "
        "a cast that overflowed or a damaged file. Silent are masks, whose values are 0 and -inf "
        "and nothing else, and the infinity that an observer or a callback starts from.",
        fix="Go back to a checkpoint of before; `ckptool diff OLD NEW` says which tensors changed.",
        example='state["head.weight"] = torch.tensor([1.0, float("nan")])\n'
        'torch.save(state, "model.pth")  # ckptool inspect --values',
    ),
)
def non_finite(valued: Valued) -> Iterator[Hit]:
    for key, one in valued.figures.items():
        if (one.nan or one.infinite) and not _meant(key, one):
            where = _position(one.first, valued.tensors[key].shape)
            yield hit(key, nan=one.nan, infinite=one.infinite, numel=one.numel, where=where)


def _meant(key: str, one: Figures) -> bool:
    """Whether the infinities belong to a mask or are an initial value before the first batch."""
    if one.nan or one.distinct is None:
        return False
    mask = set(one.distinct) == {0.0, -inf}
    return mask or (len(one.distinct) == 1 and _name(key) in _SENTINELS)


def _position(flat: int, shape: tuple[int, ...]) -> list[int]:
    """Return the index, one number a dimension, of an element given its offset in C order."""
    index: list[int] = []
    for size in reversed(shape):
        flat, place = divmod(flat, size)
        index.insert(0, place)
    return index


@check(
    Valued,
    Rule(
        code="CK402",
        name="default-norm-stats",
        level=Level.WARNING,
        gate=Level.ERROR,
        message="`{key}` is all 0 and `{variance}` all 1, as before the first batch, while "
        "`{trained}` is trained",
        why="In eval() the layer normalises by these numbers. They stay at their defaults where a "
        "copy (EMA, a converter) takes the parameters and leaves the buffers, or where training "
        "ran in eval mode: the accuracy collapses without an error.",
        fix="Take the statistics from a checkpoint that has them, or run batches through the model "
        "in train() mode.",
        example="bn = nn.BatchNorm1d(4)\n"
        "bn.weight.data.uniform_()  # trained, but never run in train() mode\n"
        'torch.save(bn.state_dict(), "model.pth")',
    ),
)
def default_norm_stats(valued: Valued) -> Iterator[Hit]:
    stale = {key for _, keys, _ in _stale(valued) for key in keys}
    for key in valued.figures:
        prefix = key.removesuffix(_MEAN)
        if _name(key) == _MEAN and key not in stale and _is_default(valued, prefix):
            names = (f"{prefix}weight", f"{prefix}bias")
            trained = next((n for n in names if _is_trained(valued.figures.get(n))), None)
            if trained:
                yield hit(key, variance=f"{prefix}{_VARIANCE}", trained=trained)


def _is_default(valued: Valued, prefix: str) -> bool:
    """Whether the running statistics of a layer are still the initial 0 and 1."""
    mean, variance, batches = (
        valued.figures.get(prefix + name) for name in (_MEAN, _VARIANCE, _BATCHES)
    )
    fresh = mean is not None and mean.all_are(0) and variance is not None and variance.all_are(1)
    return fresh and (batches is None or batches.all_are(0))


def _is_trained(one: Figures | None) -> bool:
    """Whether the parameter differs from the initial all ones or all zeros; False if None."""
    if one is None or one.nan:
        return False
    several = one.distinct is None or len(one.distinct) > 1
    return several or (one.numel == 1 and one.constant not in {0.0, 1.0})


@check(
    Valued,
    Rule(
        code="CK403",
        name="ema-buffers-stale",
        level=Level.WARNING,
        message="`{key}` keeps {stale} of {total} running statistics at their defaults, while "
        "those of the raw weights are not: `{example}`, but `{raw}`",
        why="The loop that averages goes over parameters() only. The averaged weights, which are "
        "the ones that people use, then normalise by a mean of 0 and a variance of 1.",
        fix="Copy the buffers too, when averaging and into this file: "
        'torch.optim.swa_utils.AveragedModel(model, use_buffers=True), or ema["{example}"] = '
        'raw["{raw}"]',
        example="for p, q in zip(model.parameters(), ema.parameters()):\n"
        "    q.data.lerp_(p.data, 0.01)  # and nothing for model.buffers()\n"
        'torch.save({"model": model.state_dict(), "ema": ema.state_dict()}, "m.ckpt")',
    ),
)
def ema_buffers_stale(valued: Valued) -> Iterator[Hit]:
    for root, keys, raw in _stale(valued):
        total = sum(_root(key) == root for key in valued.figures if _name(key) == _MEAN)
        yield hit(root, stale=len(keys), total=total, example=keys[0], raw=raw)


def _stale(valued: Valued) -> Iterator[tuple[str, _Statistics, str]]:
    """Yield (prefix, keys, raw key) for each averaged state with stale running statistics.

    The keys are running means at their defaults; the raw key is the trained mean of one layer.
    """
    means = [key for key in valued.figures if _name(key) == _MEAN]
    raw = [k for k in means if not _root(k) and not _is_default(valued, k.removesuffix(_MEAN))]
    trained: dict[str, list[str]] = {}
    for key in raw:
        trained.setdefault(_tail(key), []).append(key)
    found: dict[str, dict[str, str]] = {}
    for key in means:
        if (root := _root(key)) and _is_default(valued, key.removesuffix(_MEAN)):
            inner = key[len(root) :].removeprefix(".")
            twins = (k for k in trained.get(_tail(key), ()) if _same_layer(inner, k))
            if twin := next(twins, None):
                found.setdefault(root, {})[key] = twin
    for root, twins_of in found.items():
        yield root, tuple(twins_of), next(iter(twins_of.values()))


def _root(key: str) -> str:
    """Return the key up to and including its last segment that contains "ema"; "" without one."""
    segments = key.split(".")
    ends = [n for n, s in enumerate(segments) if re.search(r"(?i:(?<![a-z])ema(?![a-z]))|EMA", s)]
    return ".".join(segments[: ends[-1] + 1]) if ends else ""


def _tail(key: str) -> str:
    return ".".join(key.split(".")[-2:])


def _same_layer(inner: str, raw: str) -> bool:
    """Whether a raw key names the same layer as `inner_key`, a key within the averaged model."""
    plain = inner
    while plain.partition(".")[0] in _AROUND:
        plain = plain.partition(".")[2]
    return any(raw == name or raw.endswith(f".{name}") for name in (inner, plain))


@check(
    Valued,
    Rule(
        code="CK405",
        name="looks-uninitialised",
        level=Level.WARNING,
        message="`{key}` looks like memory that nothing was written to: magnitudes from "
        "{smallest} to {largest}, {denormals} of {numel} values denormal",
        why="torch.empty, to_empty() and a module that was materialised from meta hold whatever "
        "the memory held before. What gives it away are magnitudes from 1e30 on, or denormals "
        "beside magnitudes from 1e10 on or beside nothing that is not tiny. Tensors of one or two "
        "values (masks) and optimizer state stay silent.",
        fix="Initialise the tensor before saving: call reset_parameters(), or load a checkpoint "
        "that has it.",
        example='state["proj.weight"] = torch.empty(512, 512)  # never filled in\n'
        'torch.save(state, "model.pth")',
    ),
)
def looks_uninitialised(valued: Valued) -> Iterator[Hit]:
    for key, one in valued.figures.items():
        apart = key in valued.optimizers or valued.tensors[key].dtype not in _GARBAGE
        if not apart and one.distinct is None and _is_garbage(one):
            yield hit(
                key,
                smallest=f"{one.smallest:.1e}",
                largest=f"{one.largest:.1e}",
                denormals=one.denormals,
                numel=one.numel,
            )


def _is_garbage(one: Figures) -> bool:
    """Whether the magnitudes are those of uninitialised memory."""
    beside = one.largest >= _LARGE or one.largest < _TINY
    return one.largest >= _HUGE or (one.denormals > 0 and beside)


@check(
    Loading,
    Rule(
        code="CK404",
        name="half-rounded-buffer",
        level=Level.WARNING,
        message="`{key}` is in the file as the module makes it, but rounded to {dtype}",
        why="model.half() and model.to(bfloat16) round buffers too: frequencies of a rotary "
        "embedding, tables of positions. Loading puts the rounded numbers in the place of exact "
        "ones, and a cast back to float32 does not bring them back.",
        fix="Keep the module's own: leave the key out of the file (strict=False), or set "
        'state_dict["{key}"] from a fresh module; cast parameters only.',
        example="model.half()  # inv_freq is rounded as well\n"
        "model.float()\n"
        'torch.save(model.state_dict(), "model.pth")',
    ),
)
def half_rounded(loading: Loading) -> Iterator[Hit]:
    for key in loading.constants:
        if dtype := _rounded_to(loading, key):
            yield hit(key, dtype=dtype)


def _rounded_to(loading: Loading, key: str) -> str:
    """Return the 16-bit dtype to which the file rounds the module's value; "" if to none."""
    held = loading.module.held[key]
    rounded = (d for d, content in held.halved.items() if content in loading.constants[key])
    return next(rounded, "")


@check(
    Loading,
    Rule(
        code="CK213",
        name="checkpoint-overrides-config",
        level=Level.WARNING,
        message="`{key}` has another value in the file than the module makes of its arguments: "
        "loading puts the file's in its place",
        why="A buffer that the constructor makes the same every time is part of the configuration: "
        "anchors, masks, frequencies. If the arguments were changed on purpose, the file silently "
        "undoes it; if not, the model is not the one that was trained. Buffers that start as zeros "
        "or ones stay silent: they wait for data.",
        fix="Build the module with the arguments it was trained with; if the new value is meant, "
        'state_dict.pop("{key}") and load with strict=False.',
        example="old = Attention(window=4)  # its mask is [4, 4] of the same shape as ...\n"
        'torch.save(old.state_dict(), "old.pth")\n'
        'Attention(window=4, causal=False).load_state_dict(torch.load("old.pth"))',
    ),
)
def overrides_config(loading: Loading) -> Iterator[Hit]:
    for key, contents in loading.constants.items():
        held, tensor = loading.module.held[key], loading.state.tensors[key]
        same = tensor.dtype == held.tensor.dtype
        if same and held.fingerprint not in contents and not _rounded_to(loading, key):
            yield hit(key, where=held.where, owner=held.owner)
