"""A module or a checkpoint -> Contract: what is said of each key; two of them -> Holding."""

from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Final

from msgspec import Struct

from ckptool.compare import (
    FILE_FIELDS,
    Change,
    Changed,
    Missing,
    Unexpected,
    best_state,
    compare,
    named_state,
)
from ckptool.errors import UsageError
from ckptool.matching import find_renames
from ckptool.model import (
    Checkpoint,
    Constancy,
    Held,
    Kind,
    ModuleState,
    State,
    TensorInfo,
    natural,
    ties,
)

_LAZY: Final = "lazy"


class Source(StrEnum):
    """What a contract was taken from: it decides what can be known."""

    MODULE = "module"
    CHECKPOINT = "checkpoint"


class Term(Struct, frozen=True, kw_only=True):
    """What a contract says of one key. None is not known: a file does not say it."""

    key: str
    shape: tuple[int, ...]
    dtype: str
    layout: str = "strided"
    kind: Kind | None = None
    saved: bool = True
    """Whether the state_dict has it."""
    owner: str | None = None
    """Qualified name of the class of the module that holds it."""
    version: int | None = None
    """The `_version` of that class."""
    constancy: Constancy | None = None
    """What building the module again makes of its value; `mutated` where training changes it."""
    tied: str | None = None
    """The first of the keys that are one tensor with it."""
    custom_load: bool = False
    """Whether its owner, or a module above, has a load hook of its own; no lock says so."""

    @property
    def form(self) -> str:
        layout = "" if self.layout == "strided" else f" ({self.layout})"
        return f"{self.dtype} {list(self.shape)}{layout}"

    @property
    def tensor(self) -> TensorInfo:
        """The same as a description without bytes, as comparisons take it."""
        return TensorInfo(self.key, self.shape, self.dtype, (), 0, None, self.layout)


class Contract(Struct, frozen=True):
    """What a release promises of its state: key by key, in natural order."""

    name: str
    """What a person calls it: a module, a checkpoint, or the file of a lock."""
    source: Source
    taken_from: str
    """The module or the name of the checkpoint that it was taken from."""
    terms: Mapping[str, Term]
    others: Mapping[str, str] = {}
    """Keys of the state_dict that hold no tensor -> what they hold."""

    @property
    def saved(self) -> dict[str, Term]:
        return {key: term for key, term in self.terms.items() if term.saved}


class Standing(StrEnum):
    """What a newer contract is to an older one."""

    SAME = "the same"
    COMPATIBLE = "compatible"
    """What loads the old state strictly loads the new one so, and the other way round."""
    ADDITIVE = "additive"
    """Old files need a migration that asks no question; nothing that was promised is gone."""
    BREAKING = "breaking"


class Holding(Struct, frozen=True):
    """An older contract, and what there is now."""

    old: Contract
    new: Contract
    changes: tuple[Change, ...]
    """Of what both save, or one of them knows; what flipped is left out."""
    flipped: tuple[str, ...]
    """Keys that one saves and the other holds unsaved."""
    renames: Mapping[str, str]
    """Removed key -> added key that is probably the same tensor."""
    removed_others: tuple[str, ...]
    added_others: tuple[str, ...]
    brought: Mapping[str, str] = {}
    """Key that old files lack -> what brings its value."""
    proved: frozenset[str] = frozenset()
    """Those of `brought` that old files were seen to get."""

    @property
    def added(self) -> tuple[str, ...]:
        """Keys that old files lack, renamed ones left out."""
        renamed = set(self.renames.values())
        fresh = [c.key for c in self.changes if isinstance(c, Unexpected) and c.key not in renamed]
        return (*fresh, *(key for key in self.flipped if self.new.terms[key].saved))

    @property
    def removed(self) -> tuple[str, ...]:
        """Keys that old files have and new ones lack."""
        gone = [c.key for c in self.changes if isinstance(c, Missing)]
        return (*gone, *(key for key in self.flipped if not self.new.terms[key].saved))

    @property
    def reshaped(self) -> tuple[str, ...]:
        """Keys whose old tensor does not load any more."""
        return tuple(
            c.key for c in self.changes if isinstance(c, Changed) and c.fields & {"shape", "layout"}
        )

    @property
    def standing(self) -> Standing:
        broken = (*self.removed, *self.reshaped, *self.removed_others, *self.added_others)
        if broken or any(key not in self.brought for key in self.added):
            return Standing.BREAKING
        if self.added:
            return Standing.ADDITIVE
        return Standing.COMPATIBLE if any(differences(self.old, self.new)) else Standing.SAME


class Fixture(Struct, frozen=True):
    """An old checkpoint, and how it gets into today's module."""

    path: str
    module: str
    way: str
    """"loads strictly", "migrates: STEPS", "migrates by PLAN: STEPS"; "" where there is none."""
    reason: str = ""
    """Why there is none."""
    lacked: tuple[str, ...] = ()
    """Keys that the module expects and the file does not have: the way brings them."""


class Difference(Struct, frozen=True):
    """One thing that two contracts say differently."""

    key: str
    what: str
    """"added", "removed", or the name of a field of `Term`."""
    old: str
    new: str


def of_module(module: ModuleState) -> Contract:
    """Return the contract that a module gives: what its real state_dict() has, and all else."""
    shared = _first_of_ties(held.tensor for held in module.saved.values())
    own = [held for held in module.held.values() if held.saved or not held.alias_of]
    terms = (_module_term(held, module, shared) for held in own)
    return Contract(
        module.target, Source.MODULE, module.target, _ordered(terms), _sorted(module.others)
    )


def of_state(checkpoint: Checkpoint, state: State) -> Contract:
    """Return the contract that a file gives: what it knows, and None for the rest."""
    shared = _first_of_ties(state.tensors.values())
    terms = [_file_term(tensor, state, shared, saved=True) for tensor in state.tensors.values()]
    terms += [_file_term(tensor, state, {}, saved=False) for tensor in state.unsaved.values()]
    return Contract(
        str(checkpoint.path),
        Source.CHECKPOINT,
        checkpoint.path.name,
        _ordered(terms),
        _sorted(state.others),
    )


def state_of(checkpoint: Checkpoint, at: str | None, like: Contract | ModuleState | None) -> State:
    """Return the state at `at`, or the one most like `like`, or the only one of a model.

    Raises:
        UsageError: there is none, or more than one.
    """
    if at is not None:
        return named_state(checkpoint, at)
    if isinstance(like, ModuleState):
        return best_state(checkpoint, like)
    states = [s for s in checkpoint.states if s.role != "optimizer"]
    models = [s for s in states if s.role != "tensors"] or states
    if like is not None and models:
        return max(models, key=lambda state: _in_common(state, like))
    if len(models) == 1:
        return models[0]
    places = ", ".join(f"`{state.at or '.'}`" for state in models)
    found = f"has states at {places}: name one with --at" if models else "has no state of a model"
    raise UsageError(f"{checkpoint.path}: {found}")


def hold(old: Contract, new: Contract, brought: Mapping[str, str] | None = None) -> Holding:
    """Compare two contracts.

    Args:
        old: what was promised.
        new: what there is now.
        brought: keys that old files were seen to get -> how.
    """
    flipped = {
        key
        for key, term in old.terms.items()
        if key in new.terms and term.saved != new.terms[key].saved
    }
    before = {k: t.tensor for k, t in old.saved.items() if k not in flipped}
    after = {k: t.tensor for k, t in new.saved.items() if k not in flipped}
    changes = tuple(c for c in compare(before, after, FILE_FIELDS) if not _is_lazy(c))
    removed = [c.expected for c in changes if isinstance(c, Missing)]
    added = [c.actual for c in changes if isinstance(c, Unexpected)]
    seen = brought or {}
    wanting = {t.key for t in added} | {k for k in flipped if new.terms[k].saved}
    derived = {key: way for key in wanting if (way := _derived(new.terms[key]))}
    return Holding(
        old=old,
        new=new,
        changes=changes,
        flipped=tuple(key for key in old.terms if key in flipped),
        renames=find_renames(removed, added),
        removed_others=tuple(k for k in old.others if k not in new.others),
        added_others=tuple(k for k in new.others if k not in old.others),
        brought={**derived, **{key: way for key, way in seen.items() if key in wanting}},
        proved=frozenset(wanting & seen.keys()),
    )


def differences(old: Contract, new: Contract, *, exact: bool = False) -> Iterator[Difference]:
    """Yield everything that two contracts say differently, where both say something.

    With `exact`, also where only one of them does.
    """
    for key in sorted({*old.terms, *new.terms}, key=natural):
        before, after = old.terms.get(key), new.terms.get(key)
        if before is None or after is None:
            yield from _one_sided(key, before, after)
        else:
            yield from _fields(before, after, exact=exact)
    yield from _texts(old.others, new.others, exact=exact)


def _fields(old: Term, new: Term, *, exact: bool) -> Iterator[Difference]:
    for name in ("shape", "dtype", "layout", *_KNOWN):
        was, is_ = getattr(old, name), getattr(new, name)
        unknown = not exact and name != "tied" and (was is None or is_ is None)
        if was != is_ and not unknown:
            yield Difference(old.key, name, _word(was), _word(is_))


def _texts(old: Mapping[str, str], new: Mapping[str, str], *, exact: bool) -> Iterator[Difference]:
    for key in sorted({*old, *new}, key=natural):
        was, is_ = old.get(key), new.get(key)
        if was is None or is_ is None:
            yield Difference(key, "added" if was is None else "removed", was or "", is_ or "")
        elif exact and was != is_:
            yield Difference(key, "holds", was, is_)


_KNOWN: Final = ("kind", "saved", "owner", "version", "constancy", "tied")


def _one_sided(key: str, old: Term | None, new: Term | None) -> Iterator[Difference]:
    if old is None and new is not None:
        yield Difference(key, "added", "", _described(new))
    elif old is not None:
        yield Difference(key, "removed", _described(old), "")


def _described(term: Term) -> str:
    kind = f"{term.kind} " if term.kind else ""
    return f"{kind}{term.form}{'' if term.saved else ', not saved'}"


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(list(value)) if isinstance(value, tuple) else str(value or "-")


def _module_term(held: Held, module: ModuleState, shared: Mapping[str, str]) -> Term:
    owner = module.modules.get(held.key.rpartition(".")[0])
    known = owner if owner is not None and owner.name == held.owner else None
    return Term(
        key=held.key,
        shape=held.tensor.shape,
        dtype=held.tensor.dtype,
        layout=held.tensor.layout,
        kind=held.kind,
        saved=held.saved,
        owner=held.owner,
        version=known.version if known else None,
        constancy=_constancy(held),
        tied=shared.get(held.key),
        custom_load=_loads_its_own_way(held.key, module),
    )


def _loads_its_own_way(key: str, module: ModuleState) -> bool:
    """Whether the owner of a key, or a module that holds it, has a load hook of its own."""
    parts = key.split(".")[:-1]
    above = (".".join(parts[:depth]) for depth in range(len(parts) + 1))
    return any(prefix in module.modules and module.modules[prefix].custom_load for prefix in above)


def _constancy(held: Held) -> Constancy | None:
    """Return what is worth promising: a parameter is trained, however it begins."""
    if held.kind is Kind.PARAMETER and held.saved:
        return None
    if held.statistic:
        return Constancy.MUTATED
    return None if held.constancy is Constancy.UNKNOWN else held.constancy


def _file_term(tensor: TensorInfo, state: State, shared: Mapping[str, str], *, saved: bool) -> Term:
    owner = tensor.key.rpartition(".")[0]
    made = state.modules.get(owner)
    return Term(
        key=tensor.key,
        shape=tensor.shape,
        dtype=tensor.dtype,
        layout="strided" if tensor.layout == "chunked" else tensor.layout,
        kind=tensor.kind,
        saved=saved,
        owner=made.name if made else None,
        version=(state.versions or {}).get(owner),
        tied=shared.get(tensor.key),
    )


def _derived(term: Term) -> str:
    """Return what brings a key that old files lack, "" where that needs a decision."""
    if term.custom_load:
        return "a load hook of the module's own may bring it"
    if term.kind is Kind.BUFFER and term.constancy is Constancy.CONSTANT:
        return "`ckptool migrate` brings the value that the constructor makes"
    return ""


def _is_lazy(change: Change) -> bool:
    """Whether the shape of one side is not known before the first input."""
    if not isinstance(change, Changed):
        return False
    return _LAZY in {change.expected.layout, change.actual.layout}


def _first_of_ties(tensors: Iterable[TensorInfo]) -> dict[str, str]:
    groups = [sorted(group, key=natural) for group in ties(tensors)]
    return {key: group[0] for group in groups for key in group}


def _in_common(state: State, contract: Contract) -> tuple[int, int]:
    saved = contract.saved
    alike = sum(k in saved and saved[k].shape == t.shape for k, t in state.tensors.items())
    return alike, alike - len(state.tensors)


def _ordered(terms: Iterable[Term]) -> dict[str, Term]:
    return {term.key: term for term in sorted(terms, key=lambda term: natural(term.key))}


def _sorted(others: Mapping[str, str]) -> dict[str, str]:
    return {key: others[key] for key in sorted(others, key=natural)}
