"""ModuleDiff -> hits: shapes and dtypes of keys on both sides (CK207, CK208, CK215, CK316)."""

from collections.abc import Iterator
from typing import Final

from ckptool.compare.changes import Missing, Unexpected, is_scalar_quirk
from ckptool.compare.module_diff import ModuleDiff
from ckptool.compare.states import list_placeholders
from ckptool.model import DTYPE_BITS, IssueKind, Kind
from ckptool.phrases import quote_code, quote_python
from ckptool.rules.fixes.commands import format_migrate_command
from ckptool.rules.quantization import find_quantized_keys
from ckptool.rules.registry import Level, Rule, RuleHit, check, hit
from ckptool.values.statistics import CastEffect


@check(
    ModuleDiff,
    Rule(
        code="CK207",
        name="shape-mismatch",
        level=Level.ERROR,
        summary="`{key}` is {actual} in the file and {expected} in the module",
        detail="{diagnosis}",
        why="load_state_dict raises on a shape mismatch, with strict=False as well.",
        fix=(
            "Build the module with the arguments it was trained with. To train this tensor from "
            "its initial value instead: state_dict.pop({key:py}), and load with strict=False."
        ),
        example=(
            "state = nn.Linear(3, 5).state_dict()\n"
            "nn.Linear(3, 10).load_state_dict(state, strict=False)"
        ),
    ),
)
def find_shape_mismatches(diff: ModuleDiff) -> Iterator[RuleHit]:
    explained_keys = {key for group in diff.rename_groups for key in group.keys}
    explained_keys |= find_quantized_keys(diff)
    explained_keys |= {*list_placeholders(diff.state)}
    rank_count = _count_ranks(diff)
    for change in diff.shape_mismatches:
        if change.key in explained_keys:
            continue
        expected, actual = change.expected.shape, change.actual.shape
        yield hit(
            change.key,
            actual=list(actual),
            expected=list(expected),
            diagnosis=describe_shape_change(expected, actual)
            + _describe_slice(expected, actual, rank_count),
        )
    for file_key, key in diff.reshaped_keys.items():
        expected = diff.module.saved_tensors[key].tensor.shape
        actual = diff.state.tensors[file_key].shape
        if file_key in explained_keys:
            continue
        yield hit(
            key,
            None,
            (file_key,),
            actual=list(actual),
            expected=list(expected),
            diagnosis=f"{describe_shape_change(expected, actual)}; the file calls it"
            f" {quote_code(file_key)} (CK209)",
        )


def _count_ranks(diff: ModuleDiff) -> int:
    """Return the number of rank files of which the file is one (CK321); 0 if it stands alone."""
    counts = [
        issue.facts["count"]
        for issue in diff.checkpoint.faults
        if issue.kind is IssueKind.RANK_FILE
    ]
    return int(counts[0]) if counts else 0


def _describe_slice(expected: tuple[int, ...], actual: tuple[int, ...], rank_count: int) -> str:
    """Return ", which is one of N slices (CK321)" if the files of N ranks together have it all."""
    if len(expected) != len(actual) or rank_count < 2:
        return ""
    unequal = [(e, a) for e, a in zip(expected, actual, strict=True) if e != a]
    if len(unequal) != 1 or unequal[0][0] != unequal[0][1] * rank_count:
        return ""
    return f", which is one of the slices of {rank_count} ranks (CK321)"


def describe_shape_change(expected: tuple[int, ...], actual: tuple[int, ...]) -> str:
    """Describe how two shapes differ: number of dimensions, transposition, or sizes."""
    if len(expected) != len(actual):
        return f"{len(actual)} dimensions instead of {len(expected)}"
    if expected == actual[::-1]:
        return "transposed"
    return ", ".join(
        f"dimension {axis} is {actual_size} instead of {expected_size}"
        for axis, (expected_size, actual_size) in enumerate(zip(expected, actual, strict=True))
        if expected_size != actual_size
    )


_FLOAT_BITS: Final = {
    "float64": (53, 11),
    "float32": (24, 8),
    "bfloat16": (8, 8),
    "float16": (11, 5),
    "float8_e4m3fn": (4, 4),
    "float8_e5m2": (3, 5),
}
"""Bits of precision and of exponent (IEEE 754, and the OCP specification of 8-bit floats)."""


def _count_integer_bits(dtype: str) -> int | None:
    """Return the bits of precision of an integer or bool dtype, None for other dtypes."""
    if dtype == "bool":
        return 1
    if dtype.startswith(("int", "uint")):
        return DTYPE_BITS[dtype] - dtype.startswith("int")
    return None


def _classify_cast_loss(actual: str, expected: str) -> Level | None:
    """Return the worst level of a cast from dtype `actual` to `expected`; None if it is exact."""
    actual_bits, expected_bits = _count_integer_bits(actual), _count_integer_bits(expected)
    if actual in {expected, "bool"}:
        return None
    if expected_bits is not None:
        drops_sign = expected.startswith("uint") and not actual.startswith("uint")
        return (
            Level.ERROR
            if actual_bits is None or actual_bits > expected_bits or drops_sign
            else None
        )
    if expected not in _FLOAT_BITS or (actual_bits is None and actual not in _FLOAT_BITS):
        return (
            None
            if expected.startswith("complex") and not actual.startswith("complex")
            else Level.WARNING
        )
    precision_bits, exponent_bits = _FLOAT_BITS[expected]
    if actual_bits is not None:
        return Level.WARNING if actual_bits > precision_bits else None
    is_narrower = _FLOAT_BITS[actual][0] > precision_bits or _FLOAT_BITS[actual][1] > exponent_bits
    return Level.WARNING if is_narrower else None


@check(
    ModuleDiff,
    Rule(
        code="CK208",
        name="dtype-lossy-load",
        level=Level.WARNING,
        summary="`{key}` is {actual} in the file and {expected} in the module",
        detail="loading casts it silently{loss}",
        why=(
            "load_state_dict casts while copying and reports that all keys matched. Fractions "
            "are cut off in an integer buffer, large values overflow in float16, bfloat16 rounds."
        ),
        fix=(
            "Build the module in the file's dtype, or load without a cast: "
            "module.load_state_dict(state_dict, assign=True) keeps the dtypes of the file."
        ),
        example=(
            'model.register_buffer("running_max", torch.tensor(1))\n'
            'model.load_state_dict({"running_max": torch.tensor(2.87)})  # 2'
        ),
    ),
)
def find_lossy_casts(diff: ModuleDiff) -> Iterator[RuleHit]:
    quantized_keys = diff.quantization.explained_keys if diff.quantization else frozenset()
    for change in diff.changes:
        if isinstance(change, Missing | Unexpected) or change.key in quantized_keys:
            continue
        if "dtype" in change.fields:
            actual, expected = change.actual.dtype, change.expected.dtype
            level, effect = _classify_cast_loss(actual, expected), diff.cast_effects.get(change.key)
            if effect is not None and level is not None:
                level = _classify_measured_loss(effect, expected)
            if level is not None:
                loss = "" if effect is None else _describe_loss(effect)
                yield hit(change.key, level, actual=actual, expected=expected, loss=loss)


def _classify_measured_loss(effect: CastEffect, expected: str) -> Level | None:
    """Return the level of a cast by its measured effect; None if no value changed."""
    if not effect.changed_count:
        return None
    is_severe = effect.overflowed_count or _count_integer_bits(expected) is not None
    return Level.ERROR if is_severe else Level.WARNING


def _describe_loss(effect: CastEffect) -> str:
    infinite_clause = (
        f"; {effect.overflowed_count} become infinite" if effect.overflowed_count else ""
    )
    error_clause = (
        f", by up to {100 * effect.max_relative_change:.2g}%" if effect.max_relative_change else ""
    )
    return (
        f": {effect.changed_count} of {effect.numel} values change{error_clause}{infinite_clause}"
    )


@check(
    ModuleDiff,
    Rule(
        code="CK215",
        name="scalar-shape-quirk",
        level=Level.NOTE,
        summary="`{key}` is {actual} in the file and a scalar in the module",
        detail="its first element is loaded",
        why=(
            "For compatibility with torch 0.3, load_state_dict silently loads the first element "
            "of a vector into a scalar."
        ),
        fix="state_dict[{key:py}] = state_dict[{key:py}].reshape(())",
        example=(
            'model.register_buffer("count", torch.tensor(0))\n'
            'model.load_state_dict({"count": torch.tensor([5])})'
        ),
    ),
)
def find_scalar_quirks(diff: ModuleDiff) -> Iterator[RuleHit]:
    for change in diff.changes:
        if (
            not isinstance(change, Missing | Unexpected)
            and "shape" in change.fields
            and is_scalar_quirk(change)
        ):
            level = Level.WARNING if change.actual.numel > 1 else None
            yield hit(change.key, level, actual=list(change.actual.shape))


@check(
    ModuleDiff,
    Rule(
        code="CK316",
        name="not-a-tensor",
        level=Level.ERROR,
        summary="`{key}` is a tensor of the module, and the file has {what} there",
        why=(
            "load_state_dict copies tensors only: it raises on anything else under one of the "
            "module's keys, with strict=False as well."
        ),
        fix="{remedy}",
        general_advice=(
            "Save module.state_dict(), whose values are tensors; of an array or a list of "
            "numbers: state_dict[KEY] = torch.as_tensor(state_dict[KEY])"
        ),
        example=(
            'state = {"weight": torch.ones(2, 2), "bias": np.zeros(2)}\n'
            "nn.Linear(2, 2).load_state_dict(state)"
        ),
        explains_key=True,
    ),
)
def find_mistyped_keys(diff: ModuleDiff) -> Iterator[RuleHit]:
    for key, description in diff.mistyped_keys.items():
        tensor = diff.state.tensors.get(key)
        yield hit(
            key,
            what=description,
            remedy=(
                f"Write the arrays as tensors: {format_migrate_command(diff)}"
                if tensor is not None and tensor.kind is Kind.ARRAY
                else _advise_mistyped_key(key, description)
            ),
        )


_SEQUENCE_DESCRIPTIONS: Final = ("a list of", "a tuple of")


def _advise_mistyped_key(key: str, description: str) -> str:
    """Return code that makes a tensor of plain numbers, or what to save instead."""
    if description.startswith(_SEQUENCE_DESCRIPTIONS):
        name = quote_python(key)
        return (
            f"If its values are numbers: state_dict[{name}] = torch.as_tensor(state_dict[{name}])"
        )
    return (
        "Save module.state_dict(), whose values are tensors; an uninitialized parameter gets its "
        "shape by a forward pass before saving."
    )
