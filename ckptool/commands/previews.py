"""Report -> the same report with previews: reads the values of small masks and buffers."""

from collections.abc import Iterable
from itertools import chain, islice
from typing import Final

from msgspec.structs import replace

from ckptool.compare.checkpoint_diff import CheckpointDiff
from ckptool.compare.module_diff import ModuleDiff
from ckptool.model import Checkpoint, ModuleInfo, Preview, StateDict, TensorInfo
from ckptool.reports.inspect import InspectReport
from ckptool.reports.pictures import R, TensorPreview, with_pictures
from ckptool.values.previews import (
    MAX_READ,
    find_masks,
    looks_like_mask,
    read_preview,
    should_preview,
)

MAX_PREVIEWS: Final = 48
"""Maximum number of previews in one report; those of repeated layers are often equal."""


def add_checkpoint_previews(
    command_report: InspectReport, checkpoints: Iterable[Checkpoint]
) -> InspectReport:
    """Add previews of mask-like tensors and of unsaved tensors of pickled modules."""
    has_many_files = len(command_report.checkpoints) > 1
    preview_groups = [
        group
        for checkpoint in checkpoints
        for group in _find_mask_previews(
            checkpoint.states, f"{checkpoint.path}: " if has_many_files else ""
        )
    ]
    return with_pictures(command_report, (), (), preview_groups[:MAX_PREVIEWS])


def add_module_previews(command_report: R, module_info: ModuleInfo) -> R:
    """Add previews of the module's unsaved tensors and buffers."""
    preview_groups = [
        (TensorPreview(module_tensor.tensor, "module", module_tensor.preview),)
        for module_tensor in (
            *module_info.unsaved_tensors.values(),
            *module_info.saved_tensors.values(),
        )
        if module_tensor.preview is not None and not module_tensor.alias_of
    ]
    return with_pictures(command_report, (), (), preview_groups[:MAX_PREVIEWS])


def add_state_previews(command_report: R, state: StateDict) -> R:
    """Add the tensors of a state and previews of its masks, without a module."""
    return with_pictures(command_report, state.tensors.values(), (), _find_mask_previews([state]))


def add_module_diff_previews(command_report: R, module_diff: ModuleDiff) -> R:
    """Add the tensors of file and module, and previews of the buffers and unsaved ones of both."""
    module, file_tensors = (
        module_diff.module,
        {**module_diff.state.unsaved_tensors, **module_diff.state.tensors},
    )
    candidates = (*module.unsaved_tensors.values(), *module.saved_tensors.values())
    preview_groups = [
        (
            *_read_preview(file_tensors.get(module_tensor.key), "file"),
            *_wrap_preview(module_tensor.tensor, module_tensor.preview),
        )
        for module_tensor in islice(
            (candidate for candidate in candidates if candidate.preview is not None), MAX_PREVIEWS
        )
    ]
    expected = (module_tensor.tensor for module_tensor in module.saved_tensors.values())
    return with_pictures(
        command_report, module_diff.state.tensors.values(), expected, preview_groups
    )


def add_checkpoint_diff_previews(command_report: R, checkpoint_diff: CheckpointDiff) -> R:
    """Add both files' tensors, and previews of masks that differ; weights get no preview."""
    old_tensors, new_tensors = checkpoint_diff.old_tensors, checkpoint_diff.new_tensors
    changed_pairs = (
        (old_tensors[key], new_tensors[key])
        for key in checkpoint_diff.differing_keys or ()
        if should_preview(new_tensors[key])
    )
    preview_pairs = (
        (*_read_preview(old_tensor, "old"), *_read_preview(new_tensor, "new"))
        for old_tensor, new_tensor in islice(changed_pairs, MAX_READ)
    )
    mask_pairs = (
        pair
        for pair in preview_pairs
        if any(looks_like_mask(tensor_preview.preview) for tensor_preview in pair)
    )
    return with_pictures(
        command_report, new_tensors.values(), old_tensors.values(), islice(mask_pairs, MAX_PREVIEWS)
    )


def _find_mask_previews(
    states: Iterable[StateDict], prefix: str = ""
) -> list[tuple[TensorPreview, ...]]:
    renamed_tensors = (
        replace(tensor, key=f"{prefix}{state.at}{'.' if state.at else ''}{tensor.key}")
        for state in states
        if state.role != "optimizer"
        for tensor in chain(state.unsaved_tensors.values(), state.tensors.values())
    )
    return [
        (TensorPreview(tensor, "file", mask),)
        for tensor, mask in find_masks(renamed_tensors, MAX_PREVIEWS)
    ]


def _read_preview(tensor: TensorInfo | None, source: str) -> tuple[TensorPreview, ...]:
    return () if tensor is None else _wrap_preview(tensor, read_preview(tensor), source)


def _wrap_preview(
    tensor: TensorInfo, preview_grid: Preview | None, source: str = "module"
) -> tuple[TensorPreview, ...]:
    return () if preview_grid is None else (TensorPreview(tensor, source, preview_grid),)
