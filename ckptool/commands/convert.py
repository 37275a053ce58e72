"""Checkpoints -> the same weights in another container, and a ConvertReport; no module needed."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from ckptool.commands.sources.batch import (
    choose_suffix,
    explain_missing_folder,
    is_batch,
    list_sources,
    run_batch,
)
from ckptool.commands.sources.checkpoint_paths import PathLike, require_local_path
from ckptool.commands.sources.option_checks import reject_unused_options
from ckptool.errors import PlanError, UsageError
from ckptool.formats.limits import DEFAULT_LIMITS, Limits
from ckptool.locations import Location, parse_location
from ckptool.reports.convert import (
    ConversionReport,
    ConvertReport,
    build_conversion_report,
    build_convert_report,
)

DTYPE_NAMES: Final[Mapping[str, str]] = {
    "bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32",
    "float": "float32", "fp64": "float64", "double": "float64", "fp8": "float8_e4m3fn",
}  # fmt: skip
"""Short names of dtypes; torch's own names are taken as well."""


def convert(  # noqa: PLR0913
    source: PathLike | Sequence[PathLike],
    target: PathLike | None = None,
    *,
    at: str | None = None,
    to: str | None = None,
    dtype: str | None = None,
    weights_only: bool = False,
    strip: Sequence[str] = (),
    renames: Mapping[str, str] | None = None,
    max_shard_size: int | None = None,
    merge_shards: bool = False,
    force: bool = False,
    dry_run: bool = False,
    provenance: bool = True,
    progress: Callable[[int], None] = lambda _: None,
    limits: Limits = DEFAULT_LIMITS,
) -> ConvertReport:
    """Write checkpoints in another container, as files that run no code when loaded.

    Nothing of a source is imported or called. A .pth contains what `torch.load(weights_only=True)`
    reads; what that refuses is left out and named. All tensors are on the CPU. Before a result gets
    its name it is read again, compared with what was meant, and loaded with weights_only=True.

    Args:
        source: a checkpoint, or several; a folder stands for the checkpoints in it.
        target: path of the result, replaced atomically; of several sources, a folder.
        at: dotted place of the state_dict, or of the part of one, that alone is written.
        to: "safetensors" or "pth"; None decides by the target's suffix.
        dtype: dtype that floating point tensors are cast to ("bf16", "float16").
        weights_only: write the model's state_dict alone, and of it tensors only.
        strip: places, or globs of them, that are left out; "optimizer" is all state of optimizers.
        renames: key or pattern in the file -> key or pattern in the result.
        max_shard_size: maximum bytes of one file; the result is then a folder.
        merge_shards: write a sharded source as one file.
        force: replace an existing target.
        dry_run: write nothing.
        provenance: record source, steps and digests in the result, or next to a .pth.
        progress: called with the number of bytes written since the last call.
        limits: bounds on the memory and time that reading a file may take.

    Raises:
        ReadError: the source cannot be read.
        PlanError: the state has to be named, or the container cannot store it.
        WriteError: the result could not be completed; the target is unchanged.
        UsageError: the options exclude each other.
    """
    from ckptool.migration.plan.conversion import ConversionScope
    from ckptool.migration.plan.suggest import PlanChoices
    from ckptool.migration.request import MigrationRequest
    from ckptool.migration.run import run_migration

    paths = [source] if isinstance(source, PathLike) else list(source)
    reject_unused_options({"--merge-shards": merge_shards and max_shard_size is not None},
                          "makes one file, and --max-shard-size several")  # fmt: skip
    choices = PlanChoices(renames=renames or {}, dtype=_resolve_dtype(dtype) if dtype else "")
    conversion = ConversionScope(
        is_state_alone=weights_only or at is not None,
        is_weights_only=weights_only,
        strip=tuple(strip),
        merges_shards=merge_shards,
    )

    def convert_one(location: Location, one_target: Path | None) -> ConversionReport:
        request = MigrationRequest(
            source=location,
            target=one_target,
            at=at,
            to=to,
            choices=choices,
            conversion=conversion,
            force=force,
            dry_run=dry_run,
            max_shard_size=max_shard_size,
            record_provenance=provenance,
            limits=limits,
            progress=progress,
        )
        return build_conversion_report(run_migration(request))

    local_target = None if target is None else require_local_path(target)
    if not is_batch(paths, target, is_folder_result=max_shard_size is not None):
        return build_convert_report([convert_one(parse_location(paths[0]), local_target)])
    if local_target is None:
        raise UsageError(explain_missing_folder(paths))
    suffix = "" if max_shard_size is not None else choose_suffix(to)
    sources = list_sources(paths, to)
    batch = run_batch(sources, local_target, suffix, convert_one, dry_run=dry_run, force=force)
    return build_convert_report(batch.reports, batch.errors)


def _resolve_dtype(name: str) -> str:
    """Return torch's name of a dtype.

    Raises:
        PlanError: tensors cannot be cast to it.
    """
    from ckptool.migration.plan.tensor_operations import FLOAT_DTYPES

    dtype = DTYPE_NAMES.get(name, name.removeprefix("torch."))
    if dtype not in FLOAT_DTYPES:
        raise PlanError(f"--dtype: {name!r} is not one of {', '.join(sorted(FLOAT_DTYPES))}")
    return dtype
