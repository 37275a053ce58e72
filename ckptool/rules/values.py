"""CheckpointStatistics, ModuleDiff, ContractDiff -> hits: suspicious values (CK4xx, CK213)."""

from collections.abc import Iterator
from math import inf
from typing import Final

from ckptool.compare.contracts.contract_diff import ContractDiff
from ckptool.compare.module_diff import ModuleDiff
from ckptool.phrases import quote_path
from ckptool.rules.registry import Level, Rule, RuleHit, check, check_other_subject, hit
from ckptool.rules.release.contract import describe_acceptance
from ckptool.values.checkpoint_statistics import CheckpointStatistics
from ckptool.values.statistics import TensorStatistics

_SENTINEL_NAMES: Final = frozenset(
    ["min_val", "max_val", "best_score", "best_model_score", "kth_value", "best"]
)
"""Names in observers and callbacks that start as an infinity; the first batch replaces it."""
_HUGE_MAGNITUDE, _LARGE_MAGNITUDE, _TINY_MAGNITUDE = 1e30, 1e10, 1e-30
_GARBAGE_DTYPES: Final = frozenset(["float32", "bfloat16", "float64", "complex64", "complex128"])
"""Dtypes checked by CK405. Not float16: it ends at 65504 and is denormal below 6e-5."""


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
    command = f"ckptool diff EARLIER {quote_path(str(statistics.checkpoint.path))}"
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
        len(tensor_statistics.distinct_values) == 1 and key.rpartition(".")[2] in _SENTINEL_NAMES
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
        if (
            tensor_statistics.distinct_values is None
            and _looks_uninitialised(tensor_statistics)
            and key not in statistics.optimizer_keys
            and statistics.tensors[key].dtype in _GARBAGE_DTYPES
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
            remedy="Build the module with the arguments it was trained with."
            f"{describe_acceptance(diff)}",
        )
