"""InspectReport: the result of `inspect`."""

from collections.abc import Mapping, Sequence

from msgspec import Struct

from ckptool.errors import ReadError
from ckptool.model import Checkpoint, Skipped, StateDict, tied_keys
from ckptool.policy import ExitCode, Verdict
from ckptool.reports.common import (
    Report,
    TensorReport,
    build_finding_reports,
    build_silenced_reports,
    build_skipped_reports,
    build_tensor_report,
)


class StateReport(Struct, frozen=True, kw_only=True):
    at: str
    role: str
    tensors: tuple[TensorReport, ...]
    unsaved: tuple[TensorReport, ...]
    """Of a pickled module: tensors that its state_dict() omits."""
    others: Mapping[str, str]
    ties: tuple[tuple[str, ...], ...]


class EntryReport(Struct, frozen=True, kw_only=True):
    at: str
    text: str


class CheckpointReport(Struct, frozen=True, kw_only=True):
    path: str
    container: str
    nbytes: int
    globals: tuple[str, ...]
    """All names that the file's pickles would import, "module.name", sorted."""
    states: tuple[StateReport, ...]
    entries: tuple[EntryReport, ...]
    metadata: Mapping[str, str]
    damage: str


class InspectReport(Report, frozen=True, kw_only=True):
    checkpoints: tuple[CheckpointReport, ...]
    errors: tuple[str, ...] = ()
    """One line for each path that could not be read."""
    error_paths: tuple[str, ...] = ()
    """The path of each line of `errors`."""

    @property
    def has_multiple_checkpoints(self) -> bool:
        return len(self.checkpoints) > 1


def build_inspect_report(
    checkpoints: tuple[Checkpoint, ...],
    verdict: Verdict,
    errors: Sequence[ReadError],
    extra_skipped: tuple[Skipped, ...] = (),
) -> InspectReport:
    """Build the report of the checkpoints' contents."""
    return InspectReport(
        command="inspect",
        findings=build_finding_reports(verdict),
        silenced=build_silenced_reports(verdict),
        skipped=build_skipped_reports(
            (*(s for c in checkpoints for s in c.skipped), *extra_skipped)
        ),
        exit_code=ExitCode.COULD_NOT_CHECK if errors else verdict.exit_code,
        checkpoints=tuple(_build_checkpoint_report(c) for c in checkpoints),
        errors=tuple(map(str, errors)),
        error_paths=tuple(str(error.path) for error in errors),
    )


def _build_checkpoint_report(checkpoint: Checkpoint) -> CheckpointReport:
    return CheckpointReport(
        path=str(checkpoint.path),
        container=str(checkpoint.container),
        nbytes=checkpoint.nbytes,
        globals=tuple(sorted({use.qualified_name for use in checkpoint.globals})),
        states=tuple(_build_state_report(state) for state in checkpoint.states),
        entries=tuple(EntryReport(at=e.at, text=e.text) for e in checkpoint.entries),
        metadata=checkpoint.metadata,
        damage=checkpoint.damage,
    )


def _build_state_report(state: StateDict) -> StateReport:
    return StateReport(
        at=state.at,
        role=state.role,
        tensors=tuple(build_tensor_report(t, t.kind) for t in state.tensors.values()),
        unsaved=tuple(build_tensor_report(t, t.kind) for t in state.unsaved_tensors.values()),
        others=state.non_tensors,
        ties=tied_keys(state.tensors.values()),
    )
