"""Adapter folder x base folder -> folder of the merged model, and its MigrateReport."""

import shutil
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from ckptool.errors import UsageError, WriteError
from ckptool.formats import open_checkpoint
from ckptool.formats.limits import Limits
from ckptool.loaders.model_folder import ModelFolder, find_model_folder, require_model_folder
from ckptool.locations import Location
from ckptool.model import Checkpoint
from ckptool.policy import ExitCode
from ckptool.reports.migrate import CheckReport, MigrateReport

if TYPE_CHECKING:
    from torch import Tensor

    from ckptool.loaders.adapter_merge import AdapterMerge


def merge_adapter(
    source: Location, base: Location, target: Path, limits: Limits, *, dry_run: bool
) -> MigrateReport:
    """Write the folder of the base with the adapter merged into it, unless `dry_run`.

    Raises:
        ReadError: a folder cannot be read.
        PlanError: the adapter does not fit, or peft's merge is not what the arithmetic gives.
        UsageError: `source` is no adapter, `base` no model, or `target` exists.
        WriteError: the folder could not be completed; the destination is unchanged.
    """
    from ckptool.loaders import adapter_merge

    adapter_folder = require_model_folder(source, "peft")
    base_folder = find_model_folder(base)
    if base_folder is None or base_folder.loader != "transformers":
        raise UsageError(f"--merge-adapter {base}: is not a transformers model folder")
    if target.exists():
        raise UsageError(f"-o {target}: already exists: the merged model needs a new folder")
    adapter, model = (
        open_checkpoint(folder.path, limits, folder.weights_name)
        for folder in (adapter_folder, base_folder)
    )
    merge = adapter_merge.merge_adapter(
        base_folder, _load_tensors(model), adapter_folder, _load_tensors(adapter)
    )
    if not dry_run:
        _write_folder(merge, base_folder, target)
    return _build_report(merge, adapter, "" if dry_run else str(target))


def _load_tensors(checkpoint: Checkpoint) -> "dict[str, Tensor]":
    from ckptool.verification.load_tensors import load_tensors

    return load_tensors(checkpoint, checkpoint.states[0], {})


def _write_folder(merge: "AdapterMerge", base_folder: ModelFolder, target: Path) -> None:
    """Write beside `target` by the framework, copy what is no weight, and rename the folder."""
    from ckptool.loaders.offline import run_offline

    pending = Path(mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        with run_offline():
            merge.module.save_pretrained(pending)  # type: ignore[operator]
        for item in base_folder.path.iterdir():
            is_weights = item.suffix in {".safetensors", ".bin"} or ".index." in item.name
            if item.is_file() and not is_weights and not (pending / item.name).exists():
                shutil.copyfile(item, pending / item.name)
        pending.rename(target)
    except OSError as error:
        shutil.rmtree(pending, ignore_errors=True)
        raise WriteError(f"{target}: {error.strerror or error}") from error


def _build_report(merge: "AdapterMerge", adapter: Checkpoint, target: str) -> MigrateReport:
    counts = f"{len(merge.merged_keys)} weights merged, {len(merge.replaced_keys)} replaced"
    comparison = (
        f"largest difference from W + alpha / r * B @ A in float64: {merge.largest_difference:.1e};"
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
        notes=(comparison,),
        source_digest="",
        result_digest="",
    )
