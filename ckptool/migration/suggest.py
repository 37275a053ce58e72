"""A file against the module that is to load it -> the plan, or every reason why there is none."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from msgspec.structs import replace

from ckptool.compare import Loading, loading
from ckptool.errors import PlanError
from ckptool.matching import Rewrite
from ckptool.migration.draft import Draft, matching
from ckptool.migration.ops import (
    NOTHING,
    AddPrefix,
    Drop,
    Inject,
    Operation,
    Rename,
    StripPrefix,
)
from ckptool.migration.plan import Op, Plan, apply
from ckptool.migration.reshaping import Bake, Tie
from ckptool.migration.sources import Sources
from ckptool.model import Checkpoint, Constancy, Held, Kind, ModuleState
from ckptool.styles import Style

_MOST = 6
"""Reasons that one error names."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user said of single keys."""

    inject: Mapping[str, str] = field(default_factory=dict)
    """Key -> source."""
    drop: tuple[str, ...] = ()


def suggest(draft: Draft, module: ModuleState | None, sources: Sources, wishes: Wishes) -> Plan:
    """Return what has to be done so that `module` loads the draft strictly.

    Without a module, what was wished for and nothing else.

    Raises:
        PlanError: something cannot be decided; every such key is named, with the way out.
    """
    steps = _Steps(draft, module, sources)
    # A key to be dropped may be meant as the file has it, or as the module would.
    before = [key for key in wishes.drop if matching(draft, key) or key in draft.others]
    steps.add_all(Drop(key=key, why="asked for") for key in before)
    if module is not None:
        steps.add_all(_key_changes(steps.loading, steps.draft))
        steps.add_all(_restyles(steps.loading))
        steps.add_all(_renames(steps.loading))
    steps.add_all(Drop(key=key, why="asked for") for key in wishes.drop if key not in before)
    steps.add_all(
        Inject(key=key, source=source, why="asked for") for key, source in wishes.inject.items()
    )
    if module is not None:
        steps.add_all(_retied(steps.loading))
        steps.add_all(_injections(steps))
        steps.add_all(_drops(steps.loading))
        _check(steps.loading)
    return Plan(tuple(steps.ops))


def outcome(draft: Draft, module: ModuleState, *, alone: bool = False) -> Loading:
    """Return what loading the draft's result would meet: a dry run is the same code as `diff`.

    With `alone`, the container holds nothing but the state itself.
    """
    result = described(draft)
    if alone:
        result = replace(result, states=(draft.described,), entries=())
    return loading(result, module, draft.state.at)


def described(draft: Draft) -> Checkpoint:
    """Return the checkpoint as if the draft had been written in place of its state."""
    states = [s for s in draft.checkpoint.states if s.at != draft.state.at]
    return replace(draft.checkpoint, states=(draft.described, *states))


class _Steps:
    """The plan so far, and the draft that it leads to."""

    def __init__(self, draft: Draft, module: ModuleState | None, sources: Sources) -> None:
        self.ops: list[Op] = []
        self.draft = draft
        self.sources = sources
        self._module = module

    @property
    def loading(self) -> Loading:
        assert self._module is not None
        return outcome(self.draft, self._module)

    def add_all(self, ops: Iterator[Op]) -> None:
        for op in list(ops):
            self.draft = apply([op], self.draft, self.sources)
            self.ops.append(op)


def _key_changes(met: Loading, draft: Draft) -> Iterator[Op]:
    """Yield the changes of prefixes, or single renames where those would change other keys too."""
    if met.rewrite is None:
        return
    ops = list(_prefixes(met.rewrite))
    wanted = met.rewrite.keys
    if _leads_to(ops, draft, wanted):
        yield from ops
    else:
        why = "the module's keys are without it"
        yield from (Rename(key=old, to=new, why=why) for old, new in wanted.items())


def _prefixes(rewrite: Rewrite) -> Iterator[Op]:
    why = f"{len(rewrite.keys)} of the file's keys match the module's then"
    for removed in rewrite.removed:
        leading = removed.endswith(".")
        prefix = removed if leading else f"{removed}."
        yield StripPrefix(prefix=prefix, anywhere=not leading, why=why)
    if rewrite.added:
        yield AddPrefix(prefix=rewrite.added, why=why)


def _leads_to(ops: list[Op], draft: Draft, wanted: Mapping[str, str]) -> bool:
    """Whether `ops` rename the keys as `wanted`, and no others."""
    steps: list[Operation] = list(ops)
    try:
        for op in steps:
            draft = op.apply(draft, NOTHING)
    except PlanError:
        return False
    found = {item.origin: key for key, item in draft.items.items()}
    return all(found[old] == new for old, new in wanted.items())


def _restyles(met: Loading) -> Iterator[Op]:
    """Yield what leads from one form of a parameter to another, where nothing is computed anew."""
    for one in met.restyles:
        why = f"{one.want} for {one.have} (CK217)"
        yield from (Rename(key=old, to=new, why=why) for old, new in one.renames.items())
        if one.have is Style.PRUNED and one.want is Style.PLAIN:
            original, mask = one.file_keys
            yield Bake(key=one.parameter, original=original, mask=mask, why=f"{why}: for good")


def _renames(met: Loading) -> Iterator[Op]:
    for key, found in met.renames.items():
        ending = key.rpartition(".")[2] == found.rpartition(".")[2]
        how = "name ending" if ending else "an old name of a LayerNorm's parameter"
        why = f"one is missing and one unexpected, of one shape and {how}: probably the same"
        yield Rename(key=found, to=key, why=why)


def _retied(met: Loading) -> Iterator[Op]:
    """Yield the names that the file left out of a tie, as safetensors does."""
    for key, kept in met.tied.items():
        yield Tie(key=key, to=kept, why="one tensor under two names in the module (CK501)")


def _injections(steps: _Steps) -> Iterator[Op]:
    """Yield what brings missing tensors back: from an attribute, else from the constructor."""
    met = steps.loading
    for key in met.missing_keys:
        held = met.module.saved.get(key)
        if held is None:
            continue
        shape, attribute = held.tensor.shape, steps.sources.attribute(key, steps.draft)
        if attribute is not None and attribute.shape == shape:
            why = f"a {held.kind} now, and an attribute of the pickled module then"
            yield Inject(key=key, source="attribute", dtype=attribute.dtype, shape=shape, why=why)
        elif _counts_batches(held, met):
            why = "0, as torch fills it in for files from before 0.4.1: only momentum=None reads it"
            yield Inject(key=key, source="literal:0", dtype="int64", shape=(), why=why)
        elif _constructible(held):
            why = "assumed: the value that the constructor makes, the same under two seeds"
            dtype = held.tensor.dtype
            yield Inject(key=key, source="constructor", dtype=dtype, shape=shape, why=why)


def _counts_batches(held: Held, met: Loading) -> bool:
    """Whether it is the counter of a normalisation layer whose statistics are in the file."""
    owner, _, name = held.key.rpartition(".")
    there = f"{owner}.running_var".lstrip(".") in met.state.tensors
    ours = held.owner.startswith("torch.") and (held.tensor.dtype, held.tensor.shape) == (
        "int64",
        (),
    )
    return name == "num_batches_tracked" and there and ours


def _constructible(held: Held) -> bool:
    constant = held.constancy is Constancy.CONSTANT and not held.statistic
    return held.kind is Kind.BUFFER and constant


def _drops(met: Loading) -> Iterator[Op]:
    for key in met.unexpected_keys:
        if met.same_value.get(key) and key in met.module.unsaved:
            yield Drop(key=key, why="the module makes the same value itself (CK205)")


def _check(met: Loading) -> None:
    """Refuse what is still open.

    Raises:
        PlanError: each key, why it is open, and what would decide it.
    """
    told = {k for one in met.restyles for k in (*one.file_keys, *one.module_keys)}
    told |= {k for one in met.fused for k in (one.whole, *one.pieces)}
    forms, open_keys = _other_forms(met), (*_unknown(met, told), *_left_over(met, told))
    reasons = [*forms, *open_keys, *_misshapen(met)]
    if not reasons:
        return
    shown = "; ".join(reasons[:_MOST])
    more = f"; and {len(reasons) - _MOST} more" if len(reasons) > _MOST else ""
    raise PlanError(f"{met.checkpoint.path}: cannot decide: {shown}{more}")


def _other_forms(met: Loading) -> Iterator[str]:
    """Yield what the file has in a form from which the module's does not follow."""
    for one in met.restyles:
        if not one.bridged:
            yield (
                f"`{one.parameter}` is kept by {one.have} in the file and by {one.want} in the "
                "module (CK217): ckptool diff says how to get from one to the other"
            )
    for fused in met.fused:
        yield (
            f"`{fused.whole}` is {', '.join(f'`{p}`' for p in fused.pieces)} in one (CK218), in an "
            "order that the file does not tell: ckptool diff shows the plan to put it in"
        )


def _unknown(met: Loading, told: set[str]) -> Iterator[str]:
    for key in met.missing_keys:
        if key in told:
            continue
        held = met.module.saved.get(key)
        if held is None:
            yield f"`{key}` is extra state that the file lacks (CK220)"
        elif held.kind is Kind.PARAMETER:
            yield f"`{key}` is a parameter that the file lacks (CK201): --inject {key}=SOURCE"
        else:
            yield (
                f"`{key}` is a buffer {_origin(held)}, and it cannot be recovered from this file "
                f"(CK202): --inject {key}=file:DONOR#KEY, or another source"
            )


def _origin(held: Held) -> str:
    if held.statistic:
        return "that training changes"
    if held.constancy is Constancy.RANDOM:
        return "that differs each time the module is built"
    return "that is not known to be the same each time the module is built"


def _left_over(met: Loading, told: set[str]) -> Iterator[str]:
    for key in met.unexpected_keys:
        if key in told:
            continue
        differs = met.same_value.get(key) is False and key in met.module.unsaved
        if differs:
            yield (
                f"`{key}` has another value than the module makes itself (CK206): dropping it "
                f"changes what the model computes: --drop {key} if that is meant"
            )
        else:
            yield f"`{key}` is no key of the module (CK204): --drop {key} if it is not needed"


def _misshapen(met: Loading) -> Iterator[str]:
    for change in met.mismatched:
        have, want = list(change.actual.shape), list(change.expected.shape)
        yield (
            f"`{change.key}` is {have} and the module has {want} (CK207): build it with other "
            "arguments, or write a plan that reshapes it"
        )
