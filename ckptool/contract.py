"""ModuleInfo or Checkpoint -> Contract, one entry per key; two contracts -> ContractDiff."""

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
    """Kind of source of a contract, which decides which fields can be known."""

    MODULE = "module"
    CHECKPOINT = "checkpoint"


class Term(Struct, frozen=True, kw_only=True):
    """Properties of one key in a contract; None means unknown (not recorded in a file)."""

    key: str
    shape: tuple[int, ...]
    dtype: str
    layout: str = "strided"
    kind: Kind | None = None
    saved: bool = True
    """Whether the key is in the state_dict."""
    owner: str | None = None
    """Qualified name of the class of the owning module."""
    version: int | None = None
    """`_version` of that class."""
    constancy: Constancy | None = None
    """Whether construction reproduces the value; `mutated` if training changes it."""
    tied: str | None = None
    """First key, in natural order, of the tied keys; None if not tied."""
    custom_load: bool = False
    """Whether the owner or an ancestor module has a custom load hook; not stored in locks."""

    @property
    def form(self) -> str:
        layout = "" if self.layout == "strided" else f" ({self.layout})"
        return f"{self.dtype} {list(self.shape)}{layout}"

    @property
    def tensor(self) -> TensorInfo:
        """TensorInfo without storage, for comparisons."""
        return TensorInfo(self.key, self.shape, self.dtype, (), 0, None, self.layout)


class Contract(Struct, frozen=True):
    """State of a release, one entry per key in natural order."""

    name: str
    """Display name: module target, path of the checkpoint or path of the lock file."""
    source: Source
    taken_from: str
    """Module target, or file name of the checkpoint, that the contract was taken from."""
    terms: Mapping[str, Term]
    others: Mapping[str, str] = {}
    """Keys of the state_dict that hold no tensor -> short description of the value."""

    @property
    def saved(self) -> dict[str, Term]:
        return {key: term for key, term in self.terms.items() if term.saved}


class Standing(StrEnum):
    """Compatibility of a newer contract with an older one."""

    SAME = "the same"
    COMPATIBLE = "compatible"
    """Code that loads the old state strictly also loads the new one, and vice versa."""
    ADDITIVE = "additive"
    """Nothing was removed; old files can be migrated without a decision by the user."""
    BREAKING = "breaking"


class Holding(Struct, frozen=True):
    """Comparison of an older contract with the current one."""

    old: Contract
    new: Contract
    changes: tuple[Change, ...]
    """Changes between the saved entries, without the keys in `persistence_changed`."""
    flipped: tuple[str, ...]
    """Keys that are saved in one contract and unsaved in the other."""
    renames: Mapping[str, str]
    """Removed key -> added key that is probably the same tensor."""
    removed_others: tuple[str, ...]
    added_others: tuple[str, ...]
    brought: Mapping[str, str] = {}
    """Key missing in old files -> description of the migration that fills it."""
    proved: frozenset[str] = frozenset()
    """Keys of `migrations_for_added` whose migration succeeded on a real old file."""

    @property
    def added(self) -> tuple[str, ...]:
        """Keys missing in old files, without renamed ones."""
        renamed = set(self.renames.values())
        fresh = [c.key for c in self.changes if isinstance(c, Unexpected) and c.key not in renamed]
        return (*fresh, *(key for key in self.flipped if self.new.terms[key].saved))

    @property
    def removed(self) -> tuple[str, ...]:
        """Keys of old files that new files do not have."""
        gone = [c.key for c in self.changes if isinstance(c, Missing)]
        return (*gone, *(key for key in self.flipped if not self.new.terms[key].saved))

    @property
    def reshaped(self) -> tuple[str, ...]:
        """Keys whose shape or layout changed, so that the old tensor does not load."""
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
    """Result of loading or migrating an old checkpoint into the current module."""

    path: str
    module: str
    way: str
    """"loads strictly", "migrates: STEPS", "migrates by PLAN: STEPS"; "" if none succeeds."""
    reason: str = ""
    """Error text if `route` is "", else ""."""
    lacked: tuple[str, ...] = ()
    """Keys that the module expects and the file does not have; the route fills them."""


class Difference(Struct, frozen=True):
    """One difference between two contracts."""

    key: str
    what: str
    """"added", "removed", "holds" (another non-tensor value) or a field of `ContractEntry`."""
    old: str
    new: str


def of_module(module: ModuleState) -> Contract:
    """Return the contract of a module: the keys of its state_dict() and its unsaved tensors."""
    shared = _first_of_ties(held.tensor for held in module.saved.values())
    own = [held for held in module.held.values() if held.saved or not held.alias_of]
    terms = (_module_term(held, module, shared) for held in own)
    return Contract(
        module.target, Source.MODULE, module.target, _ordered(terms), _sorted(module.others)
    )


def of_state(checkpoint: Checkpoint, state: State) -> Contract:
    """Return the contract of a state in a file; what the file does not record is None."""
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
    """Return the state at `at`, else the one most similar to `reference`, else the only model.

    Raises:
        UsageError: no state fits, or several do.
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
        old: the contract of the older release.
        new: the current contract.
        proved_migrations: key -> description of a migration that was run successfully.
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
    """Yield the differences between two contracts, by key in natural order.

    A field that is unknown in one contract is ignored, unless `exact` is set.
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
    """Whether the owner of a key, or one of its ancestors, has a custom load hook."""
    parts = key.split(".")[:-1]
    above = (".".join(parts[:depth]) for depth in range(len(parts) + 1))
    return any(prefix in module.modules and module.modules[prefix].custom_load for prefix in above)


def _constancy(held: Held) -> Constancy | None:
    """Return the constancy to record; None for parameters (training changes them) and unknown."""
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
    """Return how a key missing in old files is filled; "" if that needs a user's decision."""
    if term.custom_load:
        return "a load hook of the module's own may bring it"
    if term.kind is Kind.BUFFER and term.constancy is Constancy.CONSTANT:
        return "`ckptool migrate` brings the value that the constructor makes"
    return ""


def _is_lazy(change: Change) -> bool:
    """Whether one side is a lazy parameter, whose shape is unknown before the first input."""
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
