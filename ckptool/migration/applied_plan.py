"""PlannedResult -> the file, its checks and its MigrationResult."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from ckptool.compare.module_diff import ModuleDiff, strict_load_obstacles
from ckptool.migration.check.restricted_load import check_restricted_load
from ckptool.migration.check.strict_load import STRICT_LOAD, CheckResult, check_pending_file
from ckptool.migration.plan.container_limits import (
    SAFETENSORS,
    get_result_place,
    keeps_saved_object,
    list_left_out,
)
from ckptool.migration.plan.draft import Draft
from ckptool.migration.plan.pending_file import PendingFile
from ckptool.migration.plan.plan_file import Plan
from ckptool.migration.planning import PlannedResult
from ckptool.migration.request import MigrationRequest, MigrationResult, get_result_container
from ckptool.migration.source_guard import SourceGuard
from ckptool.migration.write.background_fingerprints import BackgroundFingerprints
from ckptool.migration.write.early_copy import EarlyCopy
from ckptool.migration.write.file import WriteJob, write_checkpoint
from ckptool.migration.write.provenance import MigrationDigests
from ckptool.migration.write.read_back import check_entries
from ckptool.migration.write.sidecar_files import list_sidecar_files
from ckptool.migration.write.torch_pickle import TorchFile
from ckptool.model import Checkpoint, Safety, join_key
from ckptool.values.progress import start_step

if TYPE_CHECKING:
    from ckptool.migration.plan.target_module import TargetModule


@dataclass(frozen=True, slots=True)
class WrittenResult:
    """What checked the written file, and what was recorded of it."""

    checks: tuple[CheckResult, ...] = ()
    digests: MigrationDigests | None = None
    """None if nothing was written."""


UNWRITTEN: Final = WrittenResult()
"""That of a dry run."""


@dataclass(frozen=True, slots=True)
class AppliedPlan:
    """A draft with its plan applied, ready to write."""

    request: MigrationRequest
    to: str
    planned: PlannedResult
    target_module: "TargetModule | None"
    source_guard: SourceGuard
    fingerprints: BackgroundFingerprints
    early_copy: EarlyCopy
    torch_file: TorchFile | None
    keys_to_confirm: tuple[str, ...]

    @property
    def result(self) -> Draft:
        return self.planned.result

    def describe_result(self, written: WrittenResult) -> MigrationResult:
        """Return what the report says of the result; notes on it are the caller's."""
        request, result, torch_file = self.request, self.result, self.torch_file
        changes = torch_file.changes if torch_file else ()
        return MigrationResult(
            checkpoint=result.checkpoint,
            state=result.state,
            module_info=self.target_module.module_info if self.target_module else None,
            plan=Plan() if self.planned.already_applied else self.planned.plan,
            to=self.to,
            target=request.target,
            diff=_mark_checked_load(self.planned.diff, written.checks),
            checks=written.checks,
            digests=written.digests,
            notes=(),
            state_changed=self.planned.is_rewritten or bool(changes),
            already_applied=self.planned.already_applied,
            container=get_result_container(request, self.to),
            tensors=result.result_state.tensors,
            is_alone=result.is_extracted,
            omitted=list_left_out(result, self.to),
            tree_changes=changes,
            refused_globals=_list_refused_globals(request, result.checkpoint, torch_file),
        )

    def write_result(self) -> WrittenResult:
        """Write the result, have it read back and checked.

        Raises:
            WriteError: it could not be completed; the target is unchanged.
        """
        request, checks = self.request, list[CheckResult]()
        assert request.target is not None

        def check_file(path: Path) -> None:
            pending_file = self._describe_pending_file(path, request.target)
            if request.conversion is not None:
                checks.append(self._check_converted_file(pending_file))
                return
            checks.extend(
                check_pending_file(pending_file, self.target_module, request.forward_check)
            )

        if not self.early_copy.output:
            nbytes = sum(state.nbytes for state in self.result.checkpoint.states)
            start_step(f"writing {request.target.name}", nbytes)
        job = self._build_write_job(request.target, check_file)
        if request.is_sharded:
            from ckptool.migration.write.sharded_folder import write_sharded_folder

            digests = write_sharded_folder(job, request.max_shard_size)
        else:
            digests = write_checkpoint(job)
        return WrittenResult(tuple(checks), digests)

    def _build_write_job(self, target: Path, check_file: Callable[[Path], None]) -> WriteJob:
        """Return what is written to `target`; `check_file` checks it before it gets its name."""
        request = self.request
        return WriteJob(
            self.result,
            request.recorded_plan or self.planned.plan,
            target,
            self.to,
            request.force,
            request.record_provenance,
            self.torch_file,
            request.limits,
            request.progress,
            self.source_guard.check_unchanged,
            check_file,
            (
                self.early_copy.get_fingerprints
                if self.early_copy.output
                else self.fingerprints.get_fingerprints
            ),
            self.early_copy,
            request.hard_links,
            request.stamp,
            (
                list_sidecar_files(self.result.checkpoint, request.source)
                if request.is_sharded
                else ()
            ),
        )

    def _check_converted_file(self, pending_file: PendingFile) -> CheckResult:
        """Have a converted file read again; compare what stands beside the state."""
        result, limits = self.result, self.request.limits
        if keeps_saved_object(result, self.to) and not self.request.is_sharded:
            changes = self.torch_file.changes if self.torch_file else ()
            state_keys = [join_key(result.state.at, key) for key in result.state.non_tensors]
            places = [*(change.place for change in changes), *state_keys]
            check_entries(result.checkpoint, pending_file.path, pending_file.target, places, limits)
        return check_restricted_load(pending_file, limits)

    def _describe_pending_file(self, path: Path, target: Path | None) -> PendingFile:
        is_safetensors = self.to == SAFETENSORS
        tied_keys = self.result.ties if is_safetensors else {}
        return PendingFile(
            path,
            target or path,
            is_safetensors,
            get_result_place(self.result, self.to),
            tied_keys,
            strict_load_obstacles(self.planned.diff) if self.planned.diff else "",
            self.keys_to_confirm,
        )


def _mark_checked_load(diff: ModuleDiff | None, checks: Sequence[CheckResult]) -> ModuleDiff | None:
    """Return the diff as one whose load is checked, if the strict load of the result passed."""
    is_loaded = any(check.name == STRICT_LOAD and check.result == "passed" for check in checks)
    return replace(diff, unchecked_load=None) if diff and is_loaded else diff


def _list_refused_globals(
    request: MigrationRequest, source: Checkpoint, torch_file: TorchFile | None
) -> tuple[str, ...]:
    """Return the globals of the result that torch.load refuses by default: all are the source's."""
    if torch_file is None or all(use.safety is Safety.SAFE for use in source.globals):
        return ()
    return torch_file.list_refused_globals(request.limits)
