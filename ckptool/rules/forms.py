"""ModuleDiff -> hits: shapes and dtypes of keys on both sides (CK207, CK208, CK215)."""

from collections.abc import Iterator
from typing import Final

from ckptool.compare import Loading, Missing, Unexpected, scalar
from ckptool.figures import Cast
from ckptool.model import BITS
from ckptool.rules.registry import Hit, Level, Rule, check, hit


@check(
    Loading,
    Rule(
        code="CK207",
        name="shape-mismatch",
        level=Level.ERROR,
        message="`{key}` is {actual} in the file and {expected} in the module: {diagnosis}",
        why="load_state_dict raises on a shape mismatch, with strict=False as well.",
        fix="Build the module with the arguments it was trained with, or change the tensor on "
        "purpose.",
        example="state = nn.Linear(3, 5).state_dict()\n"
        "nn.Linear(3, 10).load_state_dict(state, strict=False)",
    ),
)
def shape_mismatch(loading: Loading) -> Iterator[Hit]:
    for change in loading.mismatched:
        want, have = change.expected.shape, change.actual.shape
        yield hit(
            change.key,
            actual=list(have),
            expected=list(want),
            diagnosis=diagnose_shapes(want, have),
        )


def diagnose_shapes(expected: tuple[int, ...], actual: tuple[int, ...]) -> str:
    """Describe how two shapes differ: number of dimensions, transposition, or sizes."""
    if len(expected) != len(actual):
        return f"{len(actual)} dimensions for {len(expected)}"
    if expected == actual[::-1]:
        return "transposed"
    differing = [i for i, (w, h) in enumerate(zip(expected, actual, strict=True)) if w != h]
    parts = [f"dimension {i} is {actual[i]} for {expected[i]}" for i in differing]
    return ", ".join(parts)


_FLOATS: Final = {
    "float64": (53, 11),
    "float32": (24, 8),
    "bfloat16": (8, 8),
    "float16": (11, 5),
    "float8_e4m3fn": (4, 4),
    "float8_e5m2": (3, 5),
}
"""Bits of precision and of exponent (IEEE 754, and the OCP specification of 8-bit floats)."""


def _integer(dtype: str) -> int | None:
    """Return the bits of precision of an integer or bool dtype, None for other dtypes."""
    if dtype == "bool":
        return 1
    if dtype.startswith(("int", "uint")):
        return BITS[dtype] - dtype.startswith("int")
    return None


def lossy(actual: str, expected: str) -> Level | None:
    """Return the worst level of a cast from dtype `actual` to `expected`; None if it is exact."""
    have, want = _integer(actual), _integer(expected)
    if actual in {expected, "bool"}:
        return None
    if want is not None:
        unsigned = expected.startswith("uint") and not actual.startswith("uint")
        return Level.ERROR if have is None or have > want or unsigned else None
    if expected not in _FLOATS or (have is None and actual not in _FLOATS):
        return (
            None
            if expected.startswith("complex") and not actual.startswith("complex")
            else Level.WARNING
        )
    precision, exponent = _FLOATS[expected]
    if have is not None:
        return Level.WARNING if have > precision else None
    narrower = _FLOATS[actual][0] > precision or _FLOATS[actual][1] > exponent
    return Level.WARNING if narrower else None


@check(
    Loading,
    Rule(
        code="CK208",
        name="dtype-lossy-load",
        level=Level.WARNING,
        message="`{key}` is {actual} in the file and {expected} in the module: loading casts it "
        "silently{loss}",
        why="load_state_dict copies with a cast and says that all keys matched. Fractions are cut "
        "off in an integer buffer, large values overflow in float16, bfloat16 rounds.",
        fix="Build the module in the file's dtype, or cast the file on purpose and look at the "
        "error.",
        example='model.register_buffer("running_max", torch.tensor(1))\n'
        'model.load_state_dict({"running_max": torch.tensor(2.87)})  # 2',
    ),
)
def dtype_lossy(loading: Loading) -> Iterator[Hit]:
    for change in loading.changes:
        if not isinstance(change, Missing | Unexpected) and "dtype" in change.fields:
            have, want = change.actual.dtype, change.expected.dtype
            level, told = lossy(have, want), loading.casts.get(change.key)
            if told is not None and level is not None:
                level = _loss(told, want)
            if level is not None:
                loss = "" if told is None else _loss_words(told)
                yield hit(change.key, level, actual=have, expected=want, loss=loss)


def _loss(told: Cast, expected: str) -> Level | None:
    """Return the level of a cast by its measured effect; None if no value changed."""
    if not told.changed:
        return None
    grave = told.overflowed or _integer(expected) is not None
    return Level.ERROR if grave else Level.WARNING


def _loss_words(told: Cast) -> str:
    infinite = f"; {told.overflowed} become infinite" if told.overflowed else ""
    by = f", by up to {100 * told.relative:.2g}%" if told.relative else ""
    return f": {told.changed} of {told.numel} values change{by}{infinite}"


@check(
    Loading,
    Rule(
        code="CK215",
        name="scalar-shape-quirk",
        level=Level.NOTE,
        message="`{key}` is {actual} in the file and a scalar in the module: its first element is "
        "loaded",
        why="A rule kept from torch 0.3 takes the first element of a vector for a scalar without "
        "a word.",
        fix='state_dict["{key}"] = state_dict["{key}"].reshape(())',
        example='model.register_buffer("count", torch.tensor(0))\n'
        'model.load_state_dict({"count": torch.tensor([5])})',
    ),
)
def scalar_quirk(loading: Loading) -> Iterator[Hit]:
    for change in loading.changes:
        if (
            not isinstance(change, Missing | Unexpected)
            and "shape" in change.fields
            and scalar(change)
        ):
            several = Level.WARNING if change.actual.numel > 1 else None
            yield hit(change.key, several, actual=list(change.actual.shape))
