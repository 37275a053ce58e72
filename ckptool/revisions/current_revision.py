"""Checkpoint x Chain -> CurrentRevision: the revision that a file is at, and how that is known."""

from collections.abc import Callable, Sequence
from enum import StrEnum

from msgspec import Struct
from msgspec.structs import replace

from ckptool.compare.digest import digest_checkpoint
from ckptool.compare.states import (
    find_loaded_state,
    list_model_states,
    require_state_or_part,
)
from ckptool.errors import RevisionError
from ckptool.migration.plan.draft import Draft, create_draft
from ckptool.migration.write.provenance import ProvenanceRecord, RevisionStamp, read_provenance
from ckptool.migration.write.tied_items import restore_ties
from ckptool.model import Checkpoint, StateDict
from ckptool.phrases import MAX_NAMED, join_limited, quote_code
from ckptool.revisions.chain import Chain
from ckptool.revisions.recorded_state import (
    RecordedState,
    StateDifference,
    compare_states,
    list_common_prefixes,
    record_draft,
    strip_prefix,
)
from ckptool.revisions.revision import Revision


class RevisionStatus(StrEnum):
    """How the revision of a file is known, or why it is not."""

    STAMPED = "stamped"
    NAMED = "named"
    """The user said it (--from), and its keys are those of that revision."""
    RECOGNISED = "recognised"
    """By its keys, shapes and dtypes, or by keys and shapes, which are those of one revision."""
    AMBIGUOUS = "ambiguous"
    """Several revisions record what it holds."""
    UNKNOWN = "unknown"
    FOREIGN = "of another project"
    NEWER = "newer than the code"
    CONTRADICTED = "contradicted"
    """It is stamped, or was said to be at a revision, and its keys are not those of it."""


class OtherState(Struct, frozen=True):
    """A further state of a file that is at a revision of the chain, such as an average (EMA)."""

    at: str
    revisions: tuple[Revision, ...]
    """Those that record what it holds."""

    @property
    def text(self) -> str:
        """The state and its revision, as a clause: "`ema` is at 0001_the_first_one"."""
        names = join_limited(self.revisions, MAX_NAMED, lambda r: r.name)
        verb = "is at" if len(self.revisions) == 1 else "has the keys and shapes of"
        return f"{quote_code(self.at or '.')} {verb} {names}"


class CurrentRevision(Struct, frozen=True):
    """Place of a checkpoint in a chain."""

    kind: RevisionStatus
    state: StateDict
    """The state_dict that was looked at."""
    revision: Revision | None = None
    """None where it is not known."""
    candidates: tuple[Revision, ...] = ()
    """Revisions that record what a file holds whose own is not known, whatever its stamp says."""
    stamp: RevisionStamp | None = None
    difference: StateDifference | None = None
    """From what `revision` recorded, else from the nearest revision; None without one."""
    nearest: Revision | None = None
    """Of an unknown file: the revision with the most keys in common."""
    source_digest: str = ""
    """Digest of the state_dict that a stamped file was made of, "" if it is not recorded."""
    note: str = ""
    """What was not believed, "" for nothing."""
    prefix: str = ""
    """What all keys begin with before those of the revision, as a wrapper leaves it: "module."."""
    others: tuple[OtherState, ...] = ()
    """Further states of the file that are at a revision."""

    @property
    def is_exact(self) -> bool:
        """Whether keys, shapes and dtypes are those that its revision recorded."""
        return self.difference is not None and self.difference.is_empty

    @property
    def is_known(self) -> bool:
        return self.revision is not None and self.kind is not RevisionStatus.CONTRADICTED

    @property
    def all_candidates(self) -> tuple[Revision, ...]:
        """Its revision alone if that is known, else the candidates."""
        return (self.revision,) if self.revision is not None else self.candidates

    @property
    def text(self) -> str:
        """How the revision is known, or why it is not, as the end of a sentence."""
        name = self.revision.name if self.revision else ""
        project, revision = (self.stamp.project, self.stamp.revision) if self.stamp else ("", "")
        names = join_limited(self.candidates, MAX_NAMED, lambda r: r.name)
        why = self.difference.text if self.difference else ""
        texts = {
            RevisionStatus.STAMPED: f"is at {name}, by its stamp",
            RevisionStatus.NAMED: f"is at {name}, according to --from",
            RevisionStatus.RECOGNISED: (
                f"is at {name}, recognised by its {self._evidence} (it has no stamp)"
            ),
            RevisionStatus.AMBIGUOUS: (
                f"has no stamp, and its {self._evidence} are those of {names}: name its revision "
                "with --from"
            ),
            RevisionStatus.FOREIGN: f"has the stamp of another project, {project}{self._from_hint}",
            RevisionStatus.NEWER: (
                f"is newer than the code: its stamp is revision {revision}, which is not in this "
                f"chain: update the code{self._from_hint}"
            ),
            RevisionStatus.CONTRADICTED: (
                f"has the stamp of {name}, but not its keys: {why}{self._from_hint}"
                if self.stamp
                else f"does not have the keys of {name} (--from): {why}"
            ),
            RevisionStatus.UNKNOWN: f"is at no revision of this chain{self._nearest_text}",
        }
        return texts[self.kind]

    @property
    def _evidence(self) -> str:
        """What a file without a stamp has in common with a revision."""
        return "keys, shapes and dtypes" if self.is_exact else "keys and shapes but not its dtypes"

    @property
    def _nearest_text(self) -> str:
        if self.nearest is None or self.difference is None:
            return ""
        name = self.nearest.name
        return f" (the nearest is {name}: {self.difference.text}{self._from_hint})"

    @property
    def _from_hint(self) -> str:
        """How the user says that it is at a revision; "" if it has the keys of none."""
        if not self.candidates:
            return ""
        return f"; --from {self.candidates[-1].name} takes it for a file of that revision"


def find_current_revision(
    checkpoint: Checkpoint, chain: Chain, at: str | None = None, from_: str | None = None
) -> CurrentRevision:
    """Return where a checkpoint stands in a chain.

    Args:
        checkpoint: the file.
        chain: the revisions of the project.
        at: dotted place of the state; None takes the one that fits best.
        from_: the revision that the user says it is at; None to find it.

    Raises:
        RevisionError: `from_` is no revision, or the file has no state.
        NoStateError: it has no state at `at`.
    """
    all_states = _list_states(checkpoint)
    states = all_states if at is None else [require_state_or_part(checkpoint, at)]
    if not states:
        raise RevisionError(f"{checkpoint.path}: has no state_dict of a model")
    recorded = _record_states(checkpoint, states)
    current_revision = _find_revision_of(recorded, all_states, chain, checkpoint, from_)
    others = [state for state in all_states if state.at != current_revision.state.at]
    found_others = _match_others(_record_states(checkpoint, others), chain)
    is_usual = current_revision.state is find_loaded_state(checkpoint)
    is_chosen = at is not None or current_revision.stamp is not None or is_usual
    if found_others and current_revision.is_known and not is_chosen:
        places = sorted([current_revision.state.at, *(other.at for other in found_others)])
        raise RevisionError(
            f"{checkpoint.path}: has several states of this chain, "
            f"{join_limited(places, MAX_NAMED, quote_code)}: name one with --at"
        )
    return replace(current_revision, others=found_others)


def _find_revision_of(
    recorded: "_RecordedStates",
    all_states: Sequence[StateDict],
    chain: Chain,
    checkpoint: Checkpoint,
    from_: str | None,
) -> CurrentRevision:
    """Return the revision of the states that were asked about; the stamp may be of another."""
    if from_ is not None:
        return _take_revision(recorded, chain.find_revision(from_))
    record = read_provenance(checkpoint)
    if record is None or record.stamp is None:
        return _recognise(recorded, chain)
    stamped_state = _find_stamped_state(checkpoint, all_states, record)
    if stamped_state is None:
        note = "the record next to it is of another file, and was not used"
        return replace(_recognise(recorded, chain), note=note)
    stamped = [file for file in recorded if file.state.at == stamped_state.at]
    if not stamped:
        return _recognise(recorded, chain)
    return _read_stamp(stamped, chain, record, record.stamp)


def _list_states(checkpoint: Checkpoint) -> list[StateDict]:
    """Return the states that may be a model's, that in the usual place first."""
    usual = find_loaded_state(checkpoint)
    states = [state for state in list_model_states(checkpoint) if state.tensors]
    return sorted(states, key=lambda state: state is not usual)


def _find_stamped_state(
    checkpoint: Checkpoint, states: Sequence[StateDict], record: ProvenanceRecord
) -> StateDict | None:
    """Return the state that a record was written for; None if it is of another file.

    A record in the metadata of a safetensors file is of its only state; one next to a file is of
    the state whose content digest it has, which reads the bytes of the states.
    """
    if not record.is_beside:
        return states[0] if states else None
    digests = ((state, digest_checkpoint(checkpoint, state.at).digest) for state in states)
    return next((state for state, digest in digests if digest == record.result_digest), None)


def create_chain_draft(checkpoint: Checkpoint, state: StateDict) -> Draft:
    """Return the draft that a chain's steps are applied to, with tied names that were left out."""
    return restore_ties(create_draft(checkpoint, state))


def _record_state(checkpoint: Checkpoint, state: StateDict) -> RecordedState:
    """Return keys, shapes and dtypes of a state in a file."""
    return record_draft(create_chain_draft(checkpoint, state))


class _RecordedFile(Struct, frozen=True):
    """A state of a file, and what it holds."""

    state: StateDict
    recorded: RecordedState
    prefix: str = ""
    """What was taken off all keys."""


_RecordedStates = Sequence[_RecordedFile]


def _record_states(checkpoint: Checkpoint, states: Sequence[StateDict]) -> list[_RecordedFile]:
    return [_RecordedFile(state, _record_state(checkpoint, state)) for state in states]


def _add_unwrapped(recorded: _RecordedStates) -> _RecordedStates:
    """Return the states, and behind them each without what all of its keys begin with."""
    unwrapped = [
        _RecordedFile(file.state, strip_prefix(file.recorded, prefix), prefix)
        for file in recorded
        for prefix in list_common_prefixes(file.recorded)
    ]
    return [*recorded, *unwrapped]


def _take_revision(recorded: _RecordedStates, revision: Revision) -> CurrentRevision:
    file, difference = _choose_nearest(_add_unwrapped(recorded), revision)
    kind = RevisionStatus.NAMED if difference.has_same_keys else RevisionStatus.CONTRADICTED
    return CurrentRevision(kind, file.state, revision, difference=difference, prefix=file.prefix)


def _read_stamp(
    recorded: _RecordedStates, chain: Chain, record: ProvenanceRecord, stamp: RevisionStamp
) -> CurrentRevision:
    """Return the revision that a stamp says, if the keys do not contradict it."""
    first_state = recorded[0].state
    if stamp.project != chain.project:
        candidates = _recognise(recorded, chain).all_candidates
        return CurrentRevision(RevisionStatus.FOREIGN, first_state, None, candidates, stamp=stamp)
    revision = chain.get_revision(stamp.revision)
    if revision is None:
        candidates = _recognise(recorded, chain).all_candidates
        return CurrentRevision(RevisionStatus.NEWER, first_state, None, candidates, stamp=stamp)
    file, difference = _choose_nearest(recorded, revision)
    is_same = difference.has_same_keys
    return CurrentRevision(
        RevisionStatus.STAMPED if is_same else RevisionStatus.CONTRADICTED,
        file.state,
        revision,
        () if is_same else _recognise(recorded, chain).all_candidates,
        stamp=stamp,
        difference=difference,
        source_digest=record.source_digest,
    )


def _recognise(recorded: _RecordedStates, chain: Chain) -> CurrentRevision:
    """Return the revision of a file without a stamp: all that it holds has to be as recorded."""
    for is_match in (_is_same, _has_same_shapes):
        for file in _add_unwrapped(recorded):
            held_state = file.recorded
            if matches := _match_revisions(file, chain, is_match):
                is_one = len(matches) == 1
                return CurrentRevision(
                    RevisionStatus.RECOGNISED if is_one else RevisionStatus.AMBIGUOUS,
                    file.state,
                    matches[0] if is_one else None,
                    () if is_one else matches,
                    difference=compare_states(matches[0].state, held_state),
                    prefix=file.prefix,
                )
    nearest = min(
        chain.revisions, key=lambda r: _count_differences(_choose_nearest(recorded, r)[1])
    )
    file, difference = _choose_nearest(recorded, nearest)
    candidates = (nearest,) if difference.has_same_keys else ()
    return CurrentRevision(
        RevisionStatus.UNKNOWN, file.state, None, candidates, difference=difference, nearest=nearest
    )


def _match_others(recorded: _RecordedStates, chain: Chain) -> tuple[OtherState, ...]:
    """Return the states that are at a revision, or have the keys and shapes of several."""
    return tuple(
        OtherState(file.state.at, matches)
        for file in recorded
        if (
            matches := _match_revisions(file, chain, _is_same)
            or _match_revisions(file, chain, _has_same_shapes)
        )
    )


def _match_revisions(
    file: _RecordedFile, chain: Chain, is_match: Callable[[StateDifference], bool]
) -> tuple[Revision, ...]:
    return tuple(r for r in chain.revisions if is_match(compare_states(r.state, file.recorded)))


def _is_same(difference: StateDifference) -> bool:
    return difference.is_empty


def _has_same_shapes(difference: StateDifference) -> bool:
    return difference.has_same_keys and not difference.reshaped


def _choose_nearest(
    recorded: _RecordedStates, revision: Revision
) -> tuple[_RecordedFile, StateDifference]:
    """Return the state of a file that differs least from what a revision recorded."""
    pairs = [(file, compare_states(revision.state, file.recorded)) for file in recorded]
    return min(pairs, key=lambda pair: _count_differences(pair[1]))


def _count_differences(difference: StateDifference) -> int:
    return len(difference.missing) + len(difference.unexpected) + len(difference.changed)
