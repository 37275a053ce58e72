"""Draft and ModuleInfo -> Plan, or UndecidedError with every open decision."""

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
from ckptool.migration.questions import UndecidedError, questions
from ckptool.migration.reshaping import Bake, Tie
from ckptool.migration.sources import Sources
from ckptool.model import Checkpoint, Constancy, Held, Kind, ModuleState
from ckptool.styles import Style


@dataclass(frozen=True, slots=True)
class Wishes:
    """Single keys that the user injects or drops (--inject, --drop)."""

    inject: Mapping[str, str] = field(default_factory=dict)
    """Key -> source."""
    drop: tuple[str, ...] = ()


def suggest(draft: Draft, module: ModuleState | None, sources: Sources, wishes: Wishes) -> Plan:
    """Derive the plan after which the module loads the draft strictly.

    Without a module, the plan has only the overrides.

    Raises:
        UndecidedError: keys remain undecided; it has the open decisions and the partial plan.
    """
    steps = _Steps(draft, module, sources)
    # A key to drop may be a key of the file, or a key after renaming to the module's.
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
        if still := questions(steps.loading):
            name = str(draft.checkpoint.path)
            raise UndecidedError(name, Plan(tuple(steps.ops)), still)
    return Plan(tuple(steps.ops))


def outcome(draft: Draft, module: ModuleState, *, alone: bool = False) -> Loading:
    """Compare the draft's result with the module, with the same code as `diff`.

    With `state_only`, the container has no other state_dicts and entries (safetensors).
    """
    result = described(draft)
    if alone:
        result = replace(result, states=(draft.described,), entries=())
    return loading(result, module, draft.state.at)


def described(draft: Draft) -> Checkpoint:
    """Return the checkpoint with the draft's result in place of its source state_dict."""
    states = [s for s in draft.checkpoint.states if s.at != draft.state.at]
    return replace(draft.checkpoint, states=(draft.described, *states))


class _Steps:
    """The operations so far, and the draft after them."""

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
    """Yield prefix operations, or single renames where those would give other keys."""
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
    """Return whether `ops` rename the keys as in `new_keys` (old -> new)."""
    steps: list[Operation] = list(ops)
    try:
        for op in steps:
            draft = op.apply(draft, NOTHING)
    except PlanError:
        return False
    found = {item.origin: key for key, item in draft.items.items()}
    return all(found[old] == new for old, new in wanted.items())


def _restyles(met: Loading) -> Iterator[Op]:
    """Yield renames between parametrization styles, and the bake of a pruned parameter."""
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
    """Yield tie operations for tied keys that the file omits, as safetensors does."""
    for key, kept in met.tied.items():
        yield Tie(key=key, to=kept, why="one tensor under two names in the module (CK501)")


def _injections(steps: _Steps) -> Iterator[Op]:
    """Yield injections of missing tensors: from an attribute, else from the constructor."""
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
    """Return whether it is num_batches_tracked of a norm layer whose statistics the file has."""
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
