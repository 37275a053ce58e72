"""Several sources and folders -> one result each; what fails is collected and stops nothing."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Generic, TypeVar

from msgspec import Struct

from ckptool.commands.sources.checkpoint_files import find_checkpoint_files
from ckptool.commands.sources.checkpoint_paths import PathLike
from ckptool.commands.sources.pipeline_files import (
    copy_settings,
    find_pipeline,
    list_weight_files,
)
from ckptool.errors import CkptoolError, ReadError, UsageError
from ckptool.formats.files.output_group import gather_outputs, write_separately
from ckptool.loaders.model_folder import ModelFolder
from ckptool.locations import Location, parse_location

ReportT = TypeVar("ReportT")


class BatchSource(Struct, frozen=True):
    """One source of a command that takes several, and the name of its result."""

    location: Location
    name: str
    """Path of the result below the folder, without a suffix: "run-3/model"."""
    suffix: str | None = None
    """Suffix of the result; None for that of all."""
    pipeline: Path | None = None
    """Pipeline of diffusers that it is a model of, whose other files are copied; None for none."""
    place: str = ""
    """Folder of the pipeline's copy below the results' folder, "" for that folder."""


class BatchResult(Struct, Generic[ReportT], frozen=True):
    """Reports and errors, in the order of the sources."""

    reports: tuple[ReportT, ...]
    errors: tuple[CkptoolError, ...]


def is_batch(paths: Sequence[PathLike], target: PathLike | None, *, is_folder_result: bool) -> bool:
    """Return whether results go into the folder `target`, one for each source.

    Args:
        paths: the sources.
        target: the destination; None for none.
        is_folder_result: whether the result of one source is a folder itself.
    """
    if len(paths) > 1:
        return True
    source = parse_location(paths[0])
    if find_pipeline(source) is not None:
        return True
    if isinstance(source, Path) and source.is_dir() and len(find_checkpoint_files(source)) > 1:
        return True
    is_present = target is not None and Path(str(target)).is_dir()
    return is_present and not is_folder_result


def explain_missing_folder(paths: Sequence[PathLike]) -> str:
    """Return why several sources need a destination; a last one that does not exist may be it."""
    last = parse_location(paths[-1])
    is_target = len(paths) > 1 and isinstance(last, Path) and not last.exists()
    hint = f"; {last} does not exist: if it is the result, write -o {last}" if is_target else ""
    return f"several sources need a folder for the results: -o DIR{hint}"


def list_sources(paths: Sequence[PathLike], to: str | None = None) -> list[BatchSource]:
    """Return the checkpoints that `paths` name; a folder of several stands for all below it.

    Args:
        paths: files and folders; a pipeline stands for its models.
        to: "safetensors" or "pth"; None is safetensors.

    Raises:
        ReadError: a folder has no checkpoint, or cannot be listed.
        UsageError: two of them would get the same name, or nothing is named.
    """
    if not paths:
        raise UsageError("no checkpoint is named")
    sources: list[BatchSource] = []
    for location in map(parse_location, paths):
        pipeline = find_pipeline(location)
        if pipeline is None:
            sources += _iter_sources(location)
        else:
            sources += _iter_models(pipeline, to, location.name if len(paths) > 1 else "")
    counts = Counter(source.name for source in sources)
    for source in sources:
        if counts[source.name] > 1:
            others = [str(s.location) for s in sources if s.name == source.name]
            if others[0] == others[1]:
                raise UsageError(f"{others[0]}: is given twice")
            raise UsageError(
                f"{' and '.join(others[:2])} would both be written as {source.name}: convert them "
                "one by one"
            )
    return sources


def run_batch(
    sources: Sequence[BatchSource],
    folder: Path,
    suffix: str,
    run_one: Callable[[Location, Path], ReportT],
    *,
    dry_run: bool,
    force: bool = False,
) -> BatchResult[ReportT]:
    """Run `run_one` on every source, with its target below `folder`.

    Folders that are missing are made, and removed again where nothing was written to them.

    Args:
        sources: of `list_sources`.
        folder: for the results.
        suffix: of a result, "" where it is a folder.
        run_one: source, target -> report.
        dry_run: whether nothing is written.
        force: replace files of a pipeline's copy.

    Raises:
        WriteError: the folder cannot be made.
        UsageError: a model of a pipeline would become a folder.
    """
    if not suffix and any(source.pipeline for source in sources):
        raise UsageError(
            "--max-shard-size: each model of a pipeline is written as one file: give the folder of"
            " one of them"
        )
    reports: list[ReportT] = []
    errors: list[CkptoolError] = []
    with gather_outputs() as folder_group:
        if not dry_run:
            folder_group.create_folder(folder)
        for source in sources:
            target = folder / f"{source.name}{suffix if source.suffix is None else source.suffix}"
            try:
                with write_separately(), gather_outputs() as group:
                    if not dry_run:
                        group.create_folder(target.parent)
                    reports.append(run_one(source.location, target))
            except CkptoolError as error:
                errors.append(error)
    if not (errors or dry_run):
        copies = {source.pipeline: folder / source.place for source in sources}
        for pipeline, target in copies.items():
            if pipeline is not None:
                with write_separately():
                    copy_settings(pipeline, target, force=force)
    return BatchResult(tuple(reports), tuple(errors))


def choose_suffix(to: str | None) -> str:
    """Return the suffix of a result in a folder: that of `to`, else .safetensors."""
    return ".pth" if to == "pth" else ".safetensors"


def _iter_models(pipeline: ModelFolder, to: str | None, place: str) -> Iterator[BatchSource]:
    suffix = ".bin" if to == "pth" else ".safetensors"
    for folder, path in list_weight_files(pipeline, suffix).items():
        name = str(PurePosixPath(place, path.removesuffix(suffix)))
        yield BatchSource(folder, name, suffix, Path(str(pipeline.path)), place)


def _iter_sources(location: Location) -> Iterator[BatchSource]:
    if not isinstance(location, Path) or not location.is_dir():
        yield BatchSource(location, _drop_suffix(location.name))
        return
    files = find_checkpoint_files(location)
    if not files:
        raise ReadError(location, "is a folder without a checkpoint")
    if files == [location]:
        yield BatchSource(location, location.resolve().name)
        return
    for file in files:
        relative = file.relative_to(location)
        yield BatchSource(file, str(relative.with_name(_drop_suffix(relative.name))))


def _drop_suffix(name: str) -> str:
    """Return a file's name without the suffixes of a checkpoint or of an index."""
    return re.sub(r"(?i)(?:\.index\.json|\.\w{1,11})$", "", name) or name
