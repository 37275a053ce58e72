"""Checkpoint x Chain -> Standing: the revision that a file is at, and how that is known."""

from collections.abc import Sequence
from enum import StrEnum

from msgspec import Struct
from msgspec.structs import replace

from ckptool.compare.digest import digest_checkpoint
from ckptool.compare.states import list_model_states, require_state_or_part
from ckptool.errors import RevisionError
from ckptool.migration.plan.draft import Draft, create_draft
from ckptool.migration.write.provenance import ProvenanceRecord, RevisionStamp, read_provenance
from ckptool.migration.write.tied_items import restore_ties
from ckptool.model import Checkpoint, StateDict
from ckptool.phrases import MAX_NAMED, join_limited
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


class StandingKind(StrEnum):
    """How the revision of a file is known, or why it is not."""

    STAMPED = "stamped"
    RECOGNISED = "recognised"
    """By its keys, shapes and dtypes, or by keys and shapes, which are those of one revision."""
    AMBIGUOUS = "ambiguous"
    """Several revisions record what it holds."""
    UNKNOWN = "unknown"
    FOREIGN = "of another project"
    NEWER = "newer than the code"
    CONTRADICTED = "contradicted"
    """It is stamped, and its keys are not those of that revision."""


class Standing(Struct, frozen=True):
    """Place of a checkpoint in a chain."""

    kind: StandingKind
    state: StateDict
    """The state_dict that was looked at."""
    revision: Revision | None = None
    """None where it is not known."""
    candidates: tuple[Revision, ...] = ()
    """Of an ambiguous file: the revisions that it may be at."""
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

    @property
    def is_exact(self) -> bool:
        """Whether keys, shapes and dtypes are those that its revision recorded."""
        return self.difference is not None and self.difference.is_empty

    @property
    def is_known(self) -> bool:
        return self.revision is not None and self.kind is not StandingKind.CONTRADICTED

    @property
    def text(self) -> str:
        """How the revision is known, or why it is not, as the end of a sentence."""
        name = self.revision.name if self.revision else ""
        project, revision = (self.stamp.project, self.stamp.revision) if self.stamp else ("", "")
        names = join_limited(self.candidates, MAX_NAMED, lambda r: r.name)
        why = self.difference.text if self.difference else ""
        texts = {
            StandingKind.STAMPED: f"is at {name}, by its stamp",
            StandingKind.RECOGNISED: (
                f"is at {name}, recognised by its {self._evidence} (it has no stamp)"
            ),
            StandingKind.AMBIGUOUS: (
                f"has no stamp, and its {self._evidence} are those of {names}: --from names its "
                "revision"
            ),
            StandingKind.FOREIGN: f"has the stamp of another project, {project}",
            StandingKind.NEWER: (
                f"is newer than the code: its stamp is revision {revision}, which is not in this "
                "chain: update the code"
            ),
            StandingKind.CONTRADICTED: f"has the stamp of {name}, but not its keys: {why}",
            StandingKind.UNKNOWN: f"is at no revision of this chain{self._nearest_text}",
        }
        return texts[self.kind]

    @property
    def _evidence(self) -> str:
        """What a file without a stamp has in common with a revision."""
        return "keys, shapes and dtypes" if self.is_exact else "keys and shapes, not its dtypes"

    @property
    def _nearest_text(self) -> str:
        if self.nearest is None or self.difference is None:
            return ""
        name = self.nearest.name
        hint = f"; --from {name} takes it for one of that revision"
        hint = hint if self.difference.has_same_keys else ""
        return f" (the nearest is {name}: {self.difference.text}{hint})"


def find_standing(
    checkpoint: Checkpoint, chain: Chain, at: str | None = None, from_: str | None = None
) -> Standing:
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
    states = (
        [require_state_or_part(checkpoint, at)]
        if at is not None
        else [state for state in list_model_states(checkpoint) if state.tensors]
    )
    if not states:
        raise RevisionError(f"{checkpoint.path}: has no state_dict of a model")
    recorded = [_RecordedFile(state, record_state(checkpoint, state)) for state in states]
    if from_ is not None:
        return _take_revision(recorded, chain.find_revision(from_))
    record = read_provenance(checkpoint)
    if record is None or record.stamp is None:
        return _recognise(recorded, chain)
    if record.is_beside and not _has_digest(checkpoint, states, record.result_digest):
        note = "the record next to it is of another file, and was not used"
        return replace(_recognise(recorded, chain), note=note)
    return _read_stamp(recorded, chain, record, record.stamp)


def create_chain_draft(checkpoint: Checkpoint, state: StateDict) -> Draft:
    """Return the draft that a chain's steps are applied to, with tied names that were left out."""
    return restore_ties(create_draft(checkpoint, state))


def record_state(checkpoint: Checkpoint, state: StateDict) -> RecordedState:
    """Return keys, shapes and dtypes of a state in a file."""
    return record_draft(create_chain_draft(checkpoint, state))


class _RecordedFile(Struct, frozen=True):
    """A state of a file, and what it holds."""

    state: StateDict
    recorded: RecordedState
    prefix: str = ""
    """What was taken off all keys."""


_RecordedStates = Sequence[_RecordedFile]


def _add_unwrapped(recorded: _RecordedStates) -> _RecordedStates:
    """Return the states, and behind them each without what all of its keys begin with."""
    unwrapped = [
        _RecordedFile(file.state, strip_prefix(file.recorded, prefix), prefix)
        for file in recorded
        for prefix in list_common_prefixes(file.recorded)
    ]
    return [*recorded, *unwrapped]


def _take_revision(recorded: _RecordedStates, revision: Revision) -> Standing:
    file, difference = _choose_nearest(_add_unwrapped(recorded), revision)
    kind = StandingKind.STAMPED if difference.has_same_keys else StandingKind.CONTRADICTED
    note = "its revision was given with --from"
    return Standing(
        kind, file.state, revision, difference=difference, note=note, prefix=file.prefix
    )


def _read_stamp(
    recorded: _RecordedStates, chain: Chain, record: ProvenanceRecord, stamp: RevisionStamp
) -> Standing:
    """Return the standing that a stamp says, if the keys do not contradict it."""
    first_state = recorded[0].state
    if stamp.project != chain.project:
        return Standing(StandingKind.FOREIGN, first_state, stamp=stamp)
    revision = chain.get_revision(stamp.revision)
    if revision is None:
        return Standing(StandingKind.NEWER, first_state, stamp=stamp)
    file, difference = _choose_nearest(recorded, revision)
    kind = StandingKind.STAMPED if difference.has_same_keys else StandingKind.CONTRADICTED
    return Standing(
        kind,
        file.state,
        revision,
        stamp=stamp,
        difference=difference,
        source_digest=record.source_digest,
    )


def _recognise(recorded: _RecordedStates, chain: Chain) -> Standing:
    """Return the standing of a file without a stamp: all that it holds has to be as recorded."""
    for is_match in (_is_same, _has_same_shapes):
        for file in _add_unwrapped(recorded):
            held_state = file.recorded
            matches = [r for r in chain.revisions if is_match(compare_states(r.state, held_state))]
            if matches:
                is_one = len(matches) == 1
                return Standing(
                    StandingKind.RECOGNISED if is_one else StandingKind.AMBIGUOUS,
                    file.state,
                    matches[0] if is_one else None,
                    () if is_one else tuple(matches),
                    difference=compare_states(matches[0].state, held_state),
                    prefix=file.prefix,
                )
    nearest = min(
        chain.revisions, key=lambda r: _count_differences(_choose_nearest(recorded, r)[1])
    )
    file, difference = _choose_nearest(recorded, nearest)
    return Standing(StandingKind.UNKNOWN, file.state, difference=difference, nearest=nearest)


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


def _has_digest(checkpoint: Checkpoint, states: Sequence[StateDict], digest: str) -> bool:
    """Whether one of the states has this content digest, which reads all of its bytes."""
    return any(digest_checkpoint(checkpoint, state.at).digest == digest for state in states)
