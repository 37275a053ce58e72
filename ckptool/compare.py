"""Checkpoint x ModuleInfo -> ModuleDiff: key changes and their explanations, without severity."""

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final

import msgspec
from msgspec import Struct

from ckptool import values
from ckptool.errors import UsageError
from ckptool.figures import Cast
from ckptool.fused import Fused, find_fused
from ckptool.matching import WRAPPERS, Rewrite, find_renames, find_rewrite, named_ties
from ckptool.model import Checkpoint, Container, Kind, ModuleState, State, TensorInfo, ties
from ckptool.statistics.figures import Figures, Tolerances
from ckptool.styles import Restyle, find_old_norms, find_restyles

FILE_FIELDS: Final = ("shape", "dtype", "layout")
"""Fields of TensorInfo that are compared between two files."""


_ONE_NAME: Final = (Container.SAFETENSORS, Container.SHARDED_SAFETENSORS)
"""Containers that store tied tensors once, under one key."""


class Missing(Struct, frozen=True):
    """In `expected`, not in `actual`: load_state_dict's missing_keys."""

    expected: TensorInfo

    @property
    def key(self) -> str:
        return self.expected.key


class Unexpected(Struct, frozen=True):
    """In `actual`, not in `expected`: load_state_dict's unexpected_keys."""

    actual: TensorInfo

    @property
    def key(self) -> str:
        return self.actual.key


class Changed(Struct, frozen=True):
    """In both, with different values of `fields`."""

    expected: TensorInfo
    actual: TensorInfo
    fields: frozenset[str]

    @property
    def key(self) -> str:
        return self.expected.key


Change = Missing | Unexpected | Changed


class Loading(Struct, frozen=True):
    """Comparison of a state in a checkpoint with the state_dict that a module expects."""

    checkpoint: Checkpoint
    state: State
    module: ModuleState
    changes: tuple[Change, ...]
    """In the order of the module's keys, then of the file's."""
    missing_others: tuple[str, ...] = ()
    """Keys without a tensor (extra state) that the module saves and the file does not have."""
    unexpected_others: tuple[str, ...] = ()
    rewrite: Rewrite | None = None
    renames: Mapping[str, str] = {}
    """Missing key -> unexpected key that is probably the same tensor."""
    same_value: Mapping[str, bool] = {}
    """Unexpected key that is unsaved state of the module -> whether the values are equal; only
    keys whose values could be compared."""
    restyles: tuple[Restyle, ...] = ()
    """Parameters in different parametrization styles; those with `handled_by_torch_hook` are not
    in `changes`."""
    fused: tuple[Fused, ...] = ()
    """Query, key and value projections: one tensor on one side, three on the other."""
    tied: Mapping[str, str] = {}
    """Missing key -> key of the file that is tied to it in the module."""
    diverged: tuple[tuple[str, str], ...] = ()
    """Pairs of keys tied by the module or by the file's metadata, with different values."""
    better: State | None = None
    """Another state of the file that matches the module better than `state`; None if none does."""
    casts: Mapping[str, Cast] = {}
    """Key with another dtype -> effect of the cast on its values; empty if values were not read."""
    constants: Mapping[str, tuple[str, ...]] = {}
    """Key of a buffer that every construction makes the same -> its fingerprint in the file, then
    those in the half-precision dtypes that hold it exactly; empty if values were not read."""

    @property
    def missing_keys(self) -> tuple[str, ...]:
        tensors = tuple(c.key for c in self.changes if isinstance(c, Missing))
        return (*tensors, *self.missing_others)

    @property
    def unexpected_keys(self) -> tuple[str, ...]:
        tensors = tuple(c.key for c in self.changes if isinstance(c, Unexpected))
        return (*tensors, *self.unexpected_others)

    @property
    def explained(self) -> frozenset[str]:
        """Missing and unexpected keys that a rename, tie, rewrite, style or fusion explains."""
        found = {*self.renames, *self.renames.values(), *self.tied}
        if self.rewrite:
            found |= {*self.rewrite.keys, *self.rewrite.keys.values()}
        found |= {k for one in self.restyles for k in (*one.file_keys, *one.module_keys)}
        return frozenset(found | {k for one in self.fused for k in (one.whole, *one.pieces)})

    @property
    def mismatched(self) -> tuple[Changed, ...]:
        """Changes that load_state_dict reports as "size mismatch", with strict=False too."""
        return tuple(
            c
            for c in self.changes
            if isinstance(c, Changed) and "shape" in c.fields and not scalar(c)
        )

    @property
    def matched(self) -> tuple[str, ...]:
        lost = {c.key for c in self.changes if isinstance(c, Missing)}
        lost |= {c.key for c in self.mismatched}
        return tuple(key for key in self.module.saved if key not in lost)

    @property
    def coverage(self) -> float:
        """Fraction (0.0 to 1.0) of the parameters' elements that load; 1.0 without parameters."""
        parameters = [h for h in self.module.saved.values() if h.kind is Kind.PARAMETER]
        total = sum(held.tensor.numel for held in parameters)
        matched = {*self.matched, *self.tied}
        loaded = sum(held.tensor.numel for held in parameters if held.key in matched)
        return loaded / total if total else 1.0

    @property
    def restored(self) -> Mapping[str, str]:
        """Missing key -> tied key of the file, which the safetensors loader and `migrate` retie.

        Empty for containers that store tied tensors under every name.
        """
        return self.tied if self.checkpoint.container in _ONE_NAME else {}

    @property
    def strict(self) -> bool:
        """Whether `load_state_dict(strict=True)` succeeds, after `retied_keys` are tied again."""
        missing = [key for key in self.missing_keys if key not in self.restored]
        return not (missing or self.unexpected_keys or self.mismatched)


class Revision(Struct, frozen=True):
    """Comparison of two checkpoints: tensors by key, values if they were read, plain data."""

    old: Checkpoint
    new: Checkpoint
    old_tensors: Mapping[str, TensorInfo]
    new_tensors: Mapping[str, TensorInfo]
    places: tuple[str, str]
    """`at` of the compared state in (old, new); "*" if all states of both are compared."""
    changes: tuple[Change, ...]
    renames: Mapping[str, str]
    """Removed key -> added key that is probably the same tensor."""
    proved: frozenset[str]
    """Removed keys whose rename is confirmed by equal values."""
    differing: tuple[str, ...] | None
    """Keys in both whose values differ; None if values were not read."""
    untold: Mapping[str, str]
    """Key in both whose values could not be compared -> reason."""
    entries: tuple[str, ...]
    """`at` of plain entries (an epoch, a configuration) that differ."""
    measured: Mapping[str, Figures] = {}
    """Key whose values or dtypes differ -> statistics of the difference."""
    unmeasured: Mapping[str, str] = {}
    """Key whose difference could not be measured -> reason."""
    tolerances: Tolerances | None = None
    """Tolerances within which values count as equal; None: values must be identical."""
    diverged: tuple[tuple[str, str], ...] = ()
    """Pairs of keys tied in the old file that have different values in the new one."""

    @property
    def beyond(self) -> tuple[str, ...]:
        """Keys whose values differ by more than the tolerances."""
        if self.tolerances is None:
            return self.differing or ()
        return tuple(
            key
            for key in self.differing or ()
            if key not in self.measured or not self.measured[key].close
        )

    @property
    def ties_differ(self) -> bool:
        return ties(self.old_tensors.values()) != ties(self.new_tensors.values())

    @property
    def moved(self) -> bool:
        """Whether the container or the `at` of the state differs between the files."""
        return self.old.container != self.new.container or self.places[0] != self.places[1]

    @property
    def differs(self) -> bool:
        ties_lost = self.ties_differ and not self.moved
        return bool(self.changes or self.beyond or self.entries or ties_lost)


def compare(
    expected: Mapping[str, TensorInfo], actual: Mapping[str, TensorInfo], fields: Iterable[str]
) -> Iterator[Change]:
    """Yield missing, changed and unexpected tensors: in the order of `expected`, then `actual`.

    Only `fields` of TensorInfo are compared.
    """
    compared = tuple(fields)
    for key, want in expected.items():
        have = actual.get(key)
        if have is None:
            yield Missing(want)
        else:
            different = frozenset(f for f in compared if getattr(want, f) != getattr(have, f))
            if different:
                yield Changed(want, have, different)
    for key, have in actual.items():
        if key not in expected:
            yield Unexpected(have)


def scalar(change: Changed) -> bool:
    """Whether torch loads a 1-d tensor into a 0-d one (compatibility with torch 0.3)."""
    return (
        change.expected.shape == ()
        and len(change.actual.shape) == 1
        and change.actual.shape != (0,)
    )


def unmet(met: Loading) -> str:
    """Return a text with the keys that prevent strict loading; "" if it succeeds."""
    counts = (
        ("missing", tuple(key for key in met.missing_keys if key not in met.restored)),
        ("unexpected", met.unexpected_keys),
        ("of another shape", tuple(change.key for change in met.mismatched)),
    )
    return "; ".join(f"{len(keys)} {word} ({_few(keys)})" for word, keys in counts if keys)


def _few(keys: tuple[str, ...]) -> str:
    return ", ".join(keys[:3]) + (" ..." if len(keys) > 3 else "")


def loading(checkpoint: Checkpoint, module: ModuleState, at: str | None) -> Loading:
    """Compare the state at `at` with the module; with None, the state that matches best."""
    best = best_state(checkpoint, module)
    state = best if at is None else state_at(checkpoint, at)
    expected = {key: held.tensor for key, held in module.saved.items()}
    lazy = {key for key, tensor in expected.items() if tensor.layout == "lazy"}
    restyles = find_restyles(
        expected, state.tensors, {prefix: one.name for prefix, one in module.modules.items()}
    )
    bridged = {k for one in restyles if one.bridged for k in (*one.file_keys, *one.module_keys)}
    changes = tuple(
        change
        for change in compare(expected, state.tensors, ("shape", "dtype"))
        if not (isinstance(change, Changed) and change.key in lazy) and change.key not in bridged
    )
    better = best if _score(best, module) > _score(state, module) else None
    met = Loading(checkpoint, state, module, changes, restyles=restyles, better=better)
    return _related(msgspec.structs.replace(met, **_others(met)), expected)


def _others(met: Loading) -> dict[str, tuple[str, ...]]:
    """Return fields of ModuleDiff: the keys without a tensor that only one side has."""
    state, module = met.state, met.module
    inside = f"{state.at}." if state.at else ""
    # A tuple of tensors (packed parameters) is described as a nested state.
    places = {s.at.removeprefix(inside) for s in met.checkpoint.states if s.at.startswith(inside)}
    there = {*state.others, *state.tensors, *places}
    return {
        "missing_others": tuple(k for k in module.others if k not in there),
        "unexpected_others": tuple(k for k in state.others if k not in module.others),
    }


def _related(met: Loading, expected: Mapping[str, TensorInfo]) -> Loading:
    """Pair missing with unexpected tensors: rewrites, renames, fused projections, ties."""
    state, module = met.state, met.module
    missing = {c.key: c.expected for c in met.changes if isinstance(c, Missing)}
    unexpected = {c.key: c.actual for c in met.changes if isinstance(c, Unexpected)}
    rewrite = find_rewrite([*missing.values()], [*unexpected.values()], expected, state.tensors)
    told = {*(rewrite.keys.values() if rewrite else ()), *(rewrite.keys if rewrite else ())}
    told |= {k for one in met.restyles for k in (*one.file_keys, *one.module_keys)}
    open_missing, open_unexpected = _without(missing, told), _without(unexpected, told)
    classes = {prefix: one.name for prefix, one in module.modules.items()}
    renames = find_old_norms(open_missing, open_unexpected, classes)
    told |= {*renames, *renames.values()}
    fused = find_fused([*_without(missing, told).values()], [*_without(unexpected, told).values()])
    told |= {k for one in fused for k in (one.whole, *one.pieces)}
    open_missing, open_unexpected = _without(missing, told), _without(unexpected, told)
    renames |= find_renames([*open_missing.values()], [*open_unexpected.values()])
    return msgspec.structs.replace(
        met,
        rewrite=rewrite,
        renames=renames,
        fused=fused,
        diverged=_diverged(met),
        tied={k: v for k, v in _tied(module, state).items() if k in missing and k not in told},
        same_value=_same_values([*unexpected.values()], module),
    )


def _without(tensors: Mapping[str, TensorInfo], keys: set[str]) -> dict[str, TensorInfo]:
    return {key: tensor for key, tensor in tensors.items() if key not in keys}


def _diverged(met: Loading) -> tuple[tuple[str, str], ...]:
    """Return pairs of keys declared tied that are separate tensors with different values."""
    there = met.state.tensors
    groups = ties(held.tensor for held in met.module.saved.values())
    said = [(group[0], other) for group in groups for other in group[1:]]
    said += [(kept, name) for name, kept in named_ties(met.checkpoint.metadata).items()]
    apart = [
        (one, other)
        for one, other in dict.fromkeys(said)
        if one in there and other in there and not ties((there[one], there[other]))
    ]
    told = values.equal_many([(there[one], there[other]) for one, other in apart])
    return tuple(pair for pair, same in zip(apart, told, strict=True) if same is False)


def _tied(module: ModuleState, state: State) -> dict[str, str]:
    """Return saved key missing in the file -> key in the file that is tied to it."""
    found: dict[str, str] = {}
    for group in ties(held.tensor for held in module.saved.values()):
        there = [
            key
            for key in group
            if key in state.tensors and state.tensors[key].shape == module.held[key].tensor.shape
        ]
        if there:
            found |= {key: there[0] for key in group if key not in state.tensors}
    return found


def state_at(checkpoint: Checkpoint, at: str) -> State:
    """Return the state at `at` ("." is the root); without tensors there, an empty state."""
    wanted = "" if at == "." else at
    for state in checkpoint.states:
        if state.at == wanted:
            return state
    return State(at=wanted, tensors=MappingProxyType({}), others=_children(checkpoint, wanted))


def named_state(checkpoint: Checkpoint, at: str) -> State:
    """Return the state at `at`.

    Raises:
        UsageError: the file has no state there.
    """
    state = state_at(checkpoint, at)
    if not state.tensors and all(one.at != state.at for one in checkpoint.states):
        places = ", ".join(s.at or "." for s in checkpoint.states) or "none"
        raise UsageError(f"{checkpoint.path}: no state at --at {at}; it has: {places}")
    return state


def best_state(checkpoint: Checkpoint, module: ModuleState) -> State:
    """Return the state that matches `module` best: the first of several, empty if none."""
    if not checkpoint.states:
        return State(at="", tensors=MappingProxyType({}))
    named = [s for s in checkpoint.states if s.role != "tensors"] or checkpoint.states
    return max(named, key=lambda state: _score(state, module))


def matching_as_well(checkpoint: Checkpoint, module: ModuleState, taken: State) -> tuple[str, ...]:
    """Return `at` ("." for the root) of other states that match as well as `chosen_state`."""
    best = _score(taken, module)
    others = [s for s in checkpoint.states if s.at != taken.at and s.role != "tensors"]
    return tuple(s.at or "." for s in others if s.tensors and _score(s, module) == best)


def _score(state: State, module: ModuleState) -> tuple[int, int]:
    """Return (tensors that match, exactly or without wrapper segments; -unmatched tensors)."""
    expected = {(key, held.tensor.shape) for key, held in module.saved.items()}
    names = {key.rsplit(".", 1)[-1] for key, _ in expected}
    tails = {_tail(key) for key, _ in expected}
    plain = sum((key, t.shape) in expected for key, t in state.tensors.items())
    loose = sum(_tail(key) in tails and key.rsplit(".", 1)[-1] in names for key in state.tensors)
    return max(plain, min(loose, len(expected))), plain - len(state.tensors)


def _tail(key: str) -> str:
    return ".".join([s for s in key.split(".") if s not in WRAPPERS][-2:])


def _children(checkpoint: Checkpoint, at: str) -> dict[str, str]:
    prefix = f"{at}." if at else ""
    places = [s.at for s in checkpoint.states] + [e.at for e in checkpoint.entries]
    inside = [p.removeprefix(prefix) for p in places if p.startswith(prefix) and p != at]
    return {name.split(".", 1)[0]: "no tensor" for name in inside if name}


def _same_values(unexpected: list[TensorInfo], module: ModuleState) -> dict[str, bool]:
    """Return unexpected key -> whether its fingerprint is that of the module's unsaved tensor."""
    told: dict[str, bool] = {}
    for tensor in unexpected:
        held = module.held.get(tensor.key)
        if held is not None and held.fingerprint:
            content = values.fingerprint(tensor)
            if content is not None:
                told[tensor.key] = content == held.fingerprint
    return told


def all_tensors(checkpoint: Checkpoint) -> dict[str, TensorInfo]:
    """Return the tensors of all states; the state's `at` is prefixed to each key."""
    named = {
        f"{state.at}.{key}" if state.at else key: tensor
        for state in checkpoint.states
        for key, tensor in state.tensors.items()
    }
    return {
        key: tensor if tensor.key == key else msgspec.structs.replace(tensor, key=key)
        for key, tensor in named.items()
    }
