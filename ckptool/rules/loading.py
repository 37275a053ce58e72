"""Loading -> hits: a file against the module that should load it (CK201 to CK220, CK304)."""

from collections.abc import Iterator
from typing import Final

from ckptool.compare import Loading, Missing, Unexpected, scalar
from ckptool.model import BITS, Constancy, Held, Kind
from ckptool.rules.registry import Hit, Level, Rule, check, hit

LEAST_COVERAGE: Final = 0.5
"""Below this share of the parameters' elements, `strict=False` would hide a disaster."""


def _unexplained(loading: Loading) -> Iterator[Held]:
    """Yield what is missing, but for what a rewrite or a rename finds."""
    found = set(loading.rewrite.keys.values()) if loading.rewrite else set()
    for change in loading.changes:
        if isinstance(change, Missing) and change.key not in found | loading.renames.keys():
            yield loading.module.held[change.key]


def _unclaimed(loading: Loading) -> Iterator[Unexpected]:
    """Yield what is unexpected, but for what a rewrite or a rename uses."""
    used = set(loading.rewrite.keys) if loading.rewrite else set()
    used |= set(loading.renames.values())
    for change in loading.changes:
        if isinstance(change, Unexpected) and change.key not in used:
            yield change


def _facts(held: Held) -> dict[str, object]:
    return {
        "kind": str(held.kind),
        "owner": held.owner,
        "shape": list(held.tensor.shape),
        "dtype": held.tensor.dtype,
        "nbytes": held.tensor.nbytes,
        "constancy": str(held.constancy),
        "where": held.where,
    }


def _migrate(loading: Loading) -> str:
    """Return the command that writes a file which loads."""
    return f"ckptool migrate {loading.checkpoint.path} -o NEW -m {loading.module.target}"


def _recomputable(held: Held) -> bool:
    return held.constancy is Constancy.CONSTANT and not held.statistic


@check(
    Loading,
    Rule(
        code="CK201",
        name="missing-parameter",
        level=Level.ERROR,
        message="`{key}`, {dtype} {shape}, is a parameter of the module and not in the file",
        why="Strict loading raises. With strict=False the parameter keeps its random initial "
        "value.",
        fix="Find the tensor under another name, or train it; a checkpoint of the same model has "
        "it.",
    ),
)
def missing_parameter(loading: Loading) -> Iterator[Hit]:
    for held in _unexplained(loading):
        if held.kind is not Kind.BUFFER:
            yield hit(held.key, **_facts(held))


@check(
    Loading,
    Rule(
        code="CK202",
        name="missing-statistics-buffer",
        level=Level.ERROR,
        message="`{key}`, {dtype} {shape}, is a buffer that {origin} and not in the file",
        why="Its value came from training or from chance; the constructor does not bring it back. "
        "With strict=False the model runs on default statistics.",
        fix="Take it from a checkpoint that has it; converters that copy parameters only drop "
        "buffers.",
    ),
)
def missing_statistics(loading: Loading) -> Iterator[Hit]:
    for held in _unexplained(loading):
        if held.kind is Kind.BUFFER and not _recomputable(held):
            yield hit(held.key, origin=_origin(held), **_facts(held))


def _origin(held: Held) -> str:
    if held.statistic:
        return "training changes"
    if held.constancy is Constancy.RANDOM:
        return "is random on every construction"
    return "is not known to be the same on every construction"


@check(
    Loading,
    Rule(
        code="CK203",
        name="missing-recomputable-buffer",
        level=Level.WARNING,
        message="`{key}`, {dtype} {shape}, is a buffer that is not in the file{kept}; the "
        "constructor makes the same value every time",
        why="Strict loading raises, though nothing was lost, unless the old code changed the "
        "value after construction: a state_dict holds no trace of that.",
        fix="{command}",
    ),
)
def missing_recomputable(loading: Loading) -> Iterator[Hit]:
    for held in _unexplained(loading):
        if held.kind is Kind.BUFFER and _recomputable(held):
            inside = held.key in loading.state.unsaved
            kept = "'s state_dict, but among the pickled module's attributes" if inside else ""
            command = _migrate(loading)
            yield hit(held.key, kept=kept, in_file=inside, command=command, **_facts(held))


_AUXILIARY: Final = frozenset(
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


def _auxiliary_name(key: str) -> bool:
    """Whether a segment names a loss, a metric or a judging network, as projects call them."""
    return any(
        s in _AUXILIARY or s.endswith(("_metric", "_metrics", "_loss")) for s in key.split(".")[:-1]
    )


def _lazy(loading: Loading, key: str) -> bool:
    return key in loading.module.none_buffers


def _redundancy(loading: Loading, key: str) -> bool | None:
    held = loading.module.unsaved.get(key)
    return None if held is None else loading.same_value.get(key)


@check(
    Loading,
    Rule(
        code="CK204",
        name="unexpected-key",
        level=Level.WARNING,
        message="`{key}`, {what}, is in the file and the module has no such key{why_not}",
        why="Strict loading raises. With strict=False the value is thrown away.",
        fix="Rename it if the module has it under another name; drop it if it is not needed: "
        'state_dict.pop("{key}")',
    ),
)
def unexpected_key(loading: Loading) -> Iterator[Hit]:
    for change in _unclaimed(loading):
        key, tensor = change.key, change.actual
        told = _redundancy(loading, key) is not None
        if not told and not _auxiliary_name(key):
            reason = "; there it is a buffer that is still None" if _lazy(loading, key) else ""
            what = f"{tensor.dtype} {list(tensor.shape)}"
            yield hit(key, what=what, why_not=reason, nbytes=tensor.nbytes)
    for key in loading.unexpected_others:
        if not key.endswith("_extra_state"):
            yield hit(key, what=loading.state.others[key], why_not="", nbytes=0)


@check(
    Loading,
    Rule(
        code="CK205",
        name="unexpected-redundant-buffer",
        level=Level.NOTE,
        message="`{key}` is in the file with the value that the module makes itself as {kind}",
        why="Strict loading raises on it, though dropping it changes nothing.",
        fix="{command}",
    ),
)
def unexpected_redundant(loading: Loading) -> Iterator[Hit]:
    for change in _unclaimed(loading):
        if _redundancy(loading, change.key) is True:
            kind = str(loading.module.held[change.key].kind)
            yield hit(change.key, kind=kind, command=_migrate(loading))


@check(
    Loading,
    Rule(
        code="CK206",
        name="unexpected-buffer-value-differs",
        level=Level.ERROR,
        message="`{key}` is in the file with another value than the module makes itself as {kind}",
        why="Dropping the key, which is what strict=False does, gives a model that computes "
        "something else than the one that was saved.",
        fix="Make it a persistent buffer, or set it after loading: "
        'module.{key}.copy_(state_dict["{key}"])',
    ),
)
def unexpected_differs(loading: Loading) -> Iterator[Hit]:
    for change in _unclaimed(loading):
        if _redundancy(loading, change.key) is False:
            yield hit(change.key, kind=str(loading.module.held[change.key].kind))


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
    """Say in a few words how two shapes differ."""
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
    """Bits of precision of an integer or bool dtype, else None."""
    if dtype == "bool":
        return 1
    if dtype.startswith(("int", "uint")):
        return BITS[dtype] - dtype.startswith("int")
    return None


def lossy(actual: str, expected: str) -> Level | None:
    """How bad a copy from `actual` to `expected` can be; None if it loses nothing."""
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
        "silently",
        why="load_state_dict copies with a cast and says that all keys matched. Fractions are cut "
        "off in an integer buffer, large values overflow in float16, bfloat16 rounds.",
        fix="Build the module in the file's dtype, or cast the file on purpose and look at the "
        "error.",
    ),
)
def dtype_lossy(loading: Loading) -> Iterator[Hit]:
    for change in loading.changes:
        if not isinstance(change, Missing | Unexpected) and "dtype" in change.fields:
            level = lossy(change.actual.dtype, change.expected.dtype)
            if level is not None:
                yield hit(
                    change.key, level, actual=change.actual.dtype, expected=change.expected.dtype
                )


@check(
    Loading,
    Rule(
        code="CK209",
        name="wrapper-prefix",
        level=Level.WARNING,
        message="{count} of the file's keys match once {what}",
        why="DistributedDataParallel, torch.compile, FSDP, activation checkpointing and Lightning "
        "put segments into keys. With strict=False such a file loads nothing, and nothing says "
        "so.",
        fix="{command}; or in code: state_dict = {code}",
    ),
)
def wrapper_prefix(loading: Loading) -> Iterator[Hit]:
    rewrite = loading.rewrite
    if rewrite is None:
        return
    removed = [segment.rstrip(".") for segment in rewrite.removed]
    steps = [f"`{segment}.` is taken out" for segment in removed]
    if rewrite.added:
        steps.append(f"`{rewrite.added}` is put in front")
    yield hit(
        rewrite.added or f"{'.'.join(removed)}.",
        count=len(rewrite.keys),
        what=" and ".join(steps),
        code=_rewrite_code(removed, rewrite.added),
        command=_migrate(loading),
        removed=removed,
        added=rewrite.added,
    )


def _rewrite_code(removed: list[str], added: str) -> str:
    if not removed:
        return f'{{"{added}" + k: v for k, v in state_dict.items()}}'
    gone = "{" + ", ".join(f'"{s}"' for s in removed) + "}"
    front = f'"{added}" + ' if added else ""
    kept = f'".".join(s for s in k.split(".") if s not in {gone})'
    return f"{{{front}{kept}: v for k, v in state_dict.items()}}"


@check(
    Loading,
    Rule(
        code="CK210",
        name="coverage-too-low",
        level=Level.ERROR,
        message="only {percent}% of the parameters' elements would load: {loaded} of {total} keys "
        "match",
        why="strict=False accepts this and leaves the rest at random. 0% means that nothing "
        "matched: a prefix, the wrong place in the file, or another model.",
        fix="Mend what the other findings name; if a partial load is meant, ignore CK210.",
    ),
)
def coverage_too_low(loading: Loading) -> Iterator[Hit]:
    if loading.coverage < LEAST_COVERAGE:
        yield hit(
            loading.state.at,
            percent=f"{100 * loading.coverage:.0f}",
            loaded=len(loading.matched),
            total=len(loading.module.saved),
        )


@check(
    Loading,
    Rule(
        code="CK211",
        name="probable-rename",
        level=Level.WARNING,
        message="`{key}` is missing and `{found}`, of the same shape and name ending, is "
        "unexpected: probably the same tensor",
        why="A refactor renamed the module. With strict=False the trained values are thrown away "
        "and the parameter stays at random.",
        fix="{command}",
    ),
)
def probable_rename(loading: Loading) -> Iterator[Hit]:
    for key, found in loading.renames.items():
        yield hit(key, found=found, command=_migrate(loading))


@check(
    Loading,
    Rule(
        code="CK212",
        name="wrong-nesting-level",
        level=Level.ERROR,
        message="the file has a better match at `{better}` than at `{at}`, where you look",
        why="Training scripts save a dict around the state_dict. Loading the outer one with "
        "strict=False loads nothing, and nothing says so.",
        fix="--at {better}, and in code: load_state_dict({code})",
    ),
)
def wrong_nesting(loading: Loading) -> Iterator[Hit]:
    if loading.better is not None:
        at = loading.better.at
        code = "checkpoint" + "".join(f'["{s}"]' for s in at.split(".") if s)
        yield hit(loading.state.at, at=loading.state.at or ".", better=at or ".", code=code)


@check(
    Loading,
    Rule(
        code="CK214",
        name="auxiliary-keys",
        level=Level.NOTE,
        message="`{key}` belongs to a loss, a metric or a network that only judges ({whose})",
        why="Class weights and metrics travel with the model and make strict loading raise, "
        "though the model does not need them.",
        fix='state_dict.pop("{key}"), or build the module with the same loss',
    ),
)
def auxiliary_keys(loading: Loading) -> Iterator[Hit]:
    for change in _unclaimed(loading):
        if _auxiliary_name(change.key) and _redundancy(loading, change.key) is None:
            yield hit(change.key, whose="by its name")
    for held in _unexplained(loading):
        owner = loading.module.modules.get(held.key.rpartition(".")[0])
        if owner is not None and owner.auxiliary:
            yield hit(held.key, whose=owner.name)


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


_FILLED_IN: Final = {"num_batches_tracked": 2}
"""Keys that torch's own upgrade hook fills in, and the class version since which they are saved."""


@check(
    Loading,
    Rule(
        code="CK216",
        name="version-metadata-missing",
        level=Level.ERROR,
        message="the file lost the version of `{key}` ({owner}, now version {version}): {effect}",
        why="state_dict carries class versions in _metadata. dict(sd), a comprehension, "
        "safetensors and torch.distributed.checkpoint drop them, and upgrade code then takes the "
        "file for an old one.",
        fix="Save module.state_dict() itself, or put back state_dict._metadata before loading.",
    ),
)
def version_metadata_missing(loading: Loading) -> Iterator[Hit]:
    if loading.state.versions is not None or loading.state.role == "module":
        return
    for prefix, module in loading.module.modules.items():
        if module.custom_load:
            effect = "its own loading code runs as for version 1"
            yield hit(prefix, owner=module.name, version=module.version, effect=effect)
        elif (module.version or 1) > 1:
            yield _torch_version(loading, prefix, module.name, module.version or 1)


def _torch_version(loading: Loading, prefix: str, owner: str, version: int) -> Hit:
    dot = f"{prefix}." if prefix else ""
    expected = [name for name in _FILLED_IN if f"{dot}{name}" in loading.module.saved]
    filled = [name for name in expected if f"{dot}{name}" not in loading.state.tensors]
    if filled:
        effect = f"{', '.join(filled)} is set to 0 instead of reported missing"
        return hit(prefix, owner=owner, version=version, effect=effect)
    if expected or not any(k.startswith(dot) for k in loading.module.saved):
        effect = "harmless here, since the keys that its upgrade would fill in are there"
        return hit(prefix, Level.NOTE, owner=owner, version=version, effect=effect)
    effect = "torch's upgrade for version 1 runs on it"
    return hit(prefix, owner=owner, version=version, effect=effect)


@check(
    Loading,
    Rule(
        code="CK220",
        name="extra-state-mismatch",
        level=Level.WARNING,
        message="`{key}` is {which}: state that a module writes by get_extra_state()",
        why="Strict loading raises on missing or unexpected extra state. It may hold scaling "
        "factors that the forward pass needs, or nothing at all.",
        fix='Missing: state_dict["{key}"] = module.state_dict()["{key}"], if the fresh value will '
        'do. Unexpected: state_dict.pop("{key}")',
    ),
)
def extra_state(loading: Loading) -> Iterator[Hit]:
    for key in loading.missing_others:
        yield hit(key, which="expected by the module and not in the file")
    for key in loading.unexpected_others:
        if key.endswith("_extra_state"):
            yield hit(key, which="in the file and not expected by the module")


@check(
    Loading,
    Rule(
        code="CK304",
        name="pickled-attribute-drift",
        level=Level.WARNING,
        message="`{key}` was pickled as {owner} without {names}, which the class sets today",
        why="A pickled module keeps the attributes of the day it was saved. Newer code of its "
        "class reads attributes that are not there, and fails in the middle of a forward pass.",
        fix="Load the state_dict into a module built by today's code instead of unpickling the "
        "module.",
    ),
)
def attribute_drift(loading: Loading) -> Iterator[Hit]:
    for prefix, pickled in loading.state.modules.items():
        live = loading.module.modules.get(prefix)
        if live is not None and live.name == pickled.name:
            lacking = sorted(live.attributes - pickled.attributes)
            if lacking:
                yield hit(prefix, owner=live.name, names=", ".join(lacking))
