"""Adapter folder x base folder -> folder of the merged model, and its MigrateReport."""

from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from ckptool.compare.digest import digest_checkpoint
from ckptool.errors import UsageError
from ckptool.formats import open_checkpoint
from ckptool.formats.files.atomic import check_target, open_pending_output, translate_os_errors
from ckptool.formats.files.output_group import commit_outputs
from ckptool.formats.files.source import is_directory
from ckptool.formats.limits import Limits
from ckptool.loaders.model_folder import (
    ADAPTER_CONFIG,
    find_base_folder,
    require_model_folder,
)
from ckptool.locations import Location, RemotePath
from ckptool.migration.write.merge_record import add_merge_record, format_merge_record
from ckptool.migration.write.provenance import MigrationDigests
from ckptool.migration.write.sidecar_files import copy_sidecar_files, list_sidecar_files
from ckptool.model import Checkpoint
from ckptool.phrases import pluralize
from ckptool.policy import ExitCode
from ckptool.reports.migrate import CheckReport, MigrateReport

if TYPE_CHECKING:
    from torch import Tensor

    from ckptool.loaders.adapter_merge import AdapterMerge


class MergeRequest(Struct, frozen=True):
    """An adapter, its base, and where the merged model goes."""

    adapter: Location
    base: Location
    target: Path | None
    """None in a dry run alone."""
    limits: Limits
    dry_run: bool
    """Merge and compare, and write nothing."""
    force: bool
    """Replace an existing folder."""
    provenance: bool
    """Record adapter, base and digests in the result."""


def merge_into_base(request: MergeRequest) -> MigrateReport:
    """Write the folder of the base with the adapter merged into it.

    Raises:
        ReadError: a folder cannot be read.
        PlanError: the adapter does not fit, or peft's merge is not what the arithmetic gives.
        UsageError: `adapter` is no adapter, or `base` no model of transformers.
        WriteError: the target exists, or could not be completed; it is unchanged.
    """
    from ckptool.loaders import adapter_merge

    inputs = [_require_local(place) for place in (request.adapter, request.base)]
    adapter_folder = require_model_folder(request.adapter, "peft")
    base_folder = find_base_folder(request.base)
    if base_folder is None or base_folder.loader != "transformers":
        raise UsageError(f"--merge-adapter {request.base}: is not a transformers model folder")
    if request.target is not None and not request.dry_run:
        check_target(request.target, inputs, force=request.force, folder=True)
    adapter, base = (
        open_checkpoint(folder.path, request.limits, folder.weights_name)
        for folder in (adapter_folder, base_folder)
    )
    merge = adapter_merge.merge_adapter(
        base_folder, _load_tensors(base), adapter_folder, _load_tensors(adapter)
    )
    if request.target is None or request.dry_run:
        return _build_report(merge, adapter, "", MigrationDigests("", ""))
    digests = _write_folder(merge, adapter, base, request, request.target)
    return _build_report(merge, adapter, str(request.target), digests)


def _require_local(place: Location) -> Path:
    if isinstance(place, RemotePath):
        raise UsageError(f"--merge-adapter: {place} is remote: download it first")
    return place


def _load_tensors(checkpoint: Checkpoint) -> "dict[str, Tensor]":
    from ckptool.verification.loading.load_tensors import load_tensors

    return load_tensors(checkpoint, checkpoint.states[0], {})


def _write_folder(
    merge: "AdapterMerge",
    adapter: Checkpoint,
    base: Checkpoint,
    request: MergeRequest,
    target: Path,
) -> MigrationDigests:
    """Write beside the target by the framework, copy what is no weight, and rename the folder."""
    from ckptool.loaders.offline import run_offline
    from ckptool.loaders.transformers_models import without_progress_bars

    with open_pending_output(target, force=request.force, folder=True) as output:
        with translate_os_errors(target):
            with run_offline(), without_progress_bars():
                merge.module.save_pretrained(output.path)  # type: ignore[operator]
            _copy_other_files(base, output.path)
            digests = _record_origin(adapter, base, output.path, request)
        commit_outputs(output)
    return digests


def _copy_other_files(base: Checkpoint, folder: Path) -> None:
    """Copy the configuration and the tokenizer of the base, but for what the framework wrote.

    An adapter in the folder of the base is left out: with its configuration, from_pretrained()
    would look for its weights.
    """
    place = base.path if is_directory(base.path) else base.path.parent
    files = list_sidecar_files(replace(base, path=place))
    left_out = {ADAPTER_CONFIG, *(file.name for file in folder.iterdir())}
    copy_sidecar_files([file for file in files if file.name not in left_out], folder)


def _record_origin(
    adapter: Checkpoint, base: Checkpoint, folder: Path, request: MergeRequest
) -> MigrationDigests:
    """Return the content digests of the adapter and of the result, and write them into it."""
    written_folder = require_model_folder(folder, "transformers")
    written = open_checkpoint(folder, request.limits, written_folder.weights_name)
    digests = MigrationDigests(digest_checkpoint(adapter).digest, digest_checkpoint(written).digest)
    if request.provenance:
        names = (request.adapter.name, request.base.name)
        record = format_merge_record(*names, digest_checkpoint(base).digest, digests)
        add_merge_record(folder, written_folder.weights_name, record)
    return digests


def _build_report(
    merge: "AdapterMerge", adapter: Checkpoint, target: str, digests: MigrationDigests
) -> MigrateReport:
    merged, replaced = len(merge.merged_keys), len(merge.replaced_keys)
    counts = f"{pluralize(merged, 'tensor')} merged, {replaced} replaced"
    comparison = (
        f"largest difference from the arithmetic in float64: {merge.largest_difference:.1e};"
        f" allowed: {merge.tolerance:.1e}; all other tensors are the base's, bit for bit"
    )
    return MigrateReport(
        command="migrate",
        findings=(),
        silenced=(),
        skipped=(),
        exit_code=ExitCode.PASSED,
        verdict=f"merged{'' if target else ' (dry run)'}: {counts}",
        source=str(adapter.path),
        source_container=str(adapter.container),
        target=target,
        target_container="safetensors",
        at="",
        module=type(merge.module).__qualname__,
        steps=(),
        checks=(CheckReport(name="merge", result="passed", reason=comparison),),
        notes=(),
        source_digest=digests.source,
        result_digest=digests.result,
    )
