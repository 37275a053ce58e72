"""ModuleDiff -> hits: problems of the load as a whole (CK210, CK212, CK216, CK304)."""

from collections.abc import Iterator
from typing import Final

from ckptool.compare import Loading
from ckptool.rules.registry import Hit, Level, Rule, check, hit

LEAST_COVERAGE: Final = 0.5
"""Share of the parameters' elements (0 to 1); CK210 fires if `strict=False` would load less."""


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
        example='state = {"model." + key: t for key, t in model.state_dict().items()}\n'
        "model.load_state_dict(state, strict=False)  # loads nothing",
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
        code="CK212",
        name="wrong-nesting-level",
        level=Level.ERROR,
        message="the file has a better match at `{better}` than at `{at}`, where you look",
        why="Training scripts save a dict around the state_dict. Loading the outer one with "
        "strict=False loads nothing, and nothing says so.",
        fix="--at {better}, and in code: load_state_dict({code})",
        example='checkpoint = {"epoch": 3, "state_dict": model.state_dict()}\n'
        "model.load_state_dict(checkpoint, strict=False)",
    ),
)
def wrong_nesting(loading: Loading) -> Iterator[Hit]:
    if loading.better is not None:
        at = loading.better.at
        code = "checkpoint" + "".join(f'["{s}"]' for s in at.split(".") if s)
        yield hit(loading.state.at, at=loading.state.at or ".", better=at or ".", code=code)


_FILLED_IN: Final = {"num_batches_tracked": 2}
"""Names that torch's upgrade hook fills in -> first class version that saves them."""


@check(
    Loading,
    Rule(
        code="CK216",
        name="version-metadata-missing",
        level=Level.ERROR,
        message="the file lost the version of {whose} ({owner}, now version {version}): {effect}",
        why="state_dict carries class versions in _metadata. dict(sd), a comprehension, "
        "safetensors and torch.distributed.checkpoint drop them, and upgrade code then takes the "
        "file for an old one.",
        fix="Save module.state_dict() itself, or put back state_dict._metadata before loading.",
        example="state = dict(nn.BatchNorm1d(2).state_dict())  # no _metadata any more\n"
        "nn.BatchNorm1d(2).load_state_dict(state)",
    ),
)
def version_metadata_missing(loading: Loading) -> Iterator[Hit]:
    if loading.state.versions is not None or loading.state.role == "module":
        return
    for prefix, module in loading.module.modules.items():
        if module.custom_load and (module.version or 1) == 1:
            effect = "its own loading code is told of no version, which mostly means the same"
            yield _lost(prefix, Level.NOTE, module.name, 1, effect)
        elif module.custom_load:
            effect = "its own loading code runs as for version 1"
            yield _lost(prefix, None, module.name, module.version, effect)
        elif (module.version or 1) > 1:
            yield _torch_version(loading, prefix, module.name, module.version or 1)


def _torch_version(loading: Loading, prefix: str, owner: str, version: int) -> Hit:
    """Return the hit for one of torch's own classes: NOTE if its upgrade code has no effect."""
    dot = f"{prefix}." if prefix else ""
    held = loading.module.held
    expected = [n for n in _FILLED_IN if (one := held.get(f"{dot}{n}")) is not None and one.saved]
    there = {*loading.state.tensors, *(loading.rewrite.keys.values() if loading.rewrite else ())}
    filled = [name for name in expected if f"{dot}{name}" not in there]
    if filled:
        effect = f"{', '.join(filled)} is set to 0 instead of reported missing"
        return _lost(prefix, None, owner, version, effect)
    if expected or not any(k.startswith(dot) for k in loading.module.saved):
        effect = "harmless here, since the keys that its upgrade would fill in are there"
        return _lost(prefix, Level.NOTE, owner, version, effect)
    effect = "torch's upgrade for version 1 runs on it"
    return _lost(prefix, None, owner, version, effect)


def _lost(prefix: str, level: Level | None, owner: str, version: int | None, effect: str) -> Hit:
    whose = f"`{prefix}`" if prefix else "the module"
    return hit(prefix, level, whose=whose, owner=owner, version=version, effect=effect)


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
        example="torch.save(nn.GELU(), path)  # by a torch whose GELU had no `approximate`\n"
        "nn.GELU().load_state_dict(torch.load(path, weights_only=False).state_dict())",
    ),
)
def attribute_drift(loading: Loading) -> Iterator[Hit]:
    for prefix, pickled in loading.state.modules.items():
        live = loading.module.modules.get(prefix)
        if live is not None and live.name == pickled.name:
            lacking = sorted(live.attributes - pickled.attributes)
            if lacking:
                yield hit(prefix, owner=live.name, names=", ".join(lacking))
