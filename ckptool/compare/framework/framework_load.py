"""ModuleDiff x LoadingInfo -> ModuleDiff with the framework's report in place of the keys."""

from collections.abc import Iterator
from typing import Final

from msgspec.structs import replace

from ckptool.compare.changes import Change, Changed, Missing, Unexpected
from ckptool.compare.framework.loading_info import LoadingInfo
from ckptool.compare.load_outcome import LoadOutcome, LoadStep, LoadStepKind
from ckptool.compare.module_diff import ModuleDiff
from ckptool.formats.files.weight_names import find_variant
from ckptool.model import (
    Checkpoint,
    Constancy,
    IssueKind,
    Kind,
    ModuleTensor,
    StateDict,
    TensorInfo,
    contiguous_stride,
)
from ckptool.values.equality import equal_many

SEPARATING_LOADERS: Final = frozenset({"transformers", "diffusers"})
"""Frameworks whose loader leaves tied tensors separate if their values in the file differ."""
FRAMEWORK_PACKAGES: Final = frozenset({"transformers", "diffusers", "peft", "timm"})


def apply_loading_info(diff: ModuleDiff, report: LoadingInfo) -> ModuleDiff:
    """Return the diff with what the framework's loader says in the place of the keys' comparison.

    The loader converts, renames and casts by itself, so that nothing is left to be explained by
    renames or other forms, and dtypes are no difference; a prefix counts if the loader was asked.
    It is given the tensors alone: what else is next to them in a pickle stays unexpected.
    """
    unexpected = frozenset(report.unexpected_keys)
    report = _add_unreached(_name_variant(report, diff.checkpoint), diff)
    return replace(
        _select_tensors(diff, report),
        changes=tuple(_iter_changes(diff, report)),
        load_outcome=LoadOutcome(report.error, report.missing_keys, report.unexpected_keys),
        loading_info=report,
        load_steps=tuple(_iter_load_steps(report)),
        missing_non_tensors=(),
        unexpected_non_tensors=() if report.error else diff.unexpected_non_tensors,
        rewrite=report.rewrite,
        reshaped_keys={},
        part=None,
        rename_groups=(),
        reparametrizations=(),
        fused_projections=(),
        tied_missing_keys={},
        diverged_ties=_find_diverged_ties(diff, report),
        equal_values={k: v for k, v in diff.equal_values.items() if k in unexpected},
    )


def _find_diverged_ties(diff: ModuleDiff, report: LoadingInfo) -> tuple[tuple[str, str], ...]:
    """Return pairs of tied keys with different values in the file.

    from_pretrained() loads both and leaves them separate; what other loaders copy into one tensor,
    the report says: of such a pair, the first key is the one whose values stay.
    """
    if diff.module.loader in SEPARATING_LOADERS:
        return diff.diverged_ties
    tensors = diff.state.tensors
    pairs = [
        (kept_key, key)
        for key, kept_key in report.overwritten_keys.items()
        if key in tensors and kept_key in tensors
    ]
    results = equal_many([(tensors[kept_key], tensors[key]) for kept_key, key in pairs])
    return tuple(pair for pair, is_equal in zip(pairs, results, strict=True) if is_equal is False)


def _select_tensors(diff: ModuleDiff, report: LoadingInfo) -> ModuleDiff:
    """Return the diff of the tensors that the file is for.

    Without unsaved ones that the loader restores from it, or that a class of the framework keeps
    in plain attributes and makes again: its files leave them out on purpose.
    """
    tensors = {
        path: module_tensor
        for path, module_tensor in diff.module.tensors.items()
        if path not in report.restored_paths and not is_remade_by_framework(module_tensor)
    }
    if report.scope_keys is not None:
        scope = frozenset(report.scope_keys)
        tensors = {k: t for k, t in tensors.items() if k in scope or not t.is_saved}
    return replace(diff, module=replace(diff.module, tensors=tensors))


def is_remade_by_framework(module_tensor: ModuleTensor) -> bool:
    """Whether a class of a framework makes this plain attribute anew, the same each time."""
    return (
        module_tensor.kind in {Kind.ATTRIBUTE, Kind.CONTAINER, Kind.ARRAY}
        and module_tensor.owner.partition(".")[0] in FRAMEWORK_PACKAGES
        and module_tensor.constancy is Constancy.CONSTANT
    )


def _name_variant(report: LoadingInfo, checkpoint: Checkpoint) -> LoadingInfo:
    """Return the report with the variant in its call, where the files that were read are of one."""
    files = checkpoint.files or (checkpoint.path,)
    variant = find_variant({file.name for file in files})
    if not variant or report.loader != "from_pretrained()":
        return report
    return replace(report, loader=f'from_pretrained(variant="{variant}")', variant=variant)


def _add_unreached(report: LoadingInfo, diff: ModuleDiff) -> LoadingInfo:
    """Return the report with an error, where the loader does not open the weights that were read.

    The report is of the tensors; the framework looks for them by the names of files, and takes the
    whole of a file. Where it finds none for that reason, the report says so.
    """
    reasons = {issue.kind: issue.key for issue in diff.checkpoint.faults}
    nested = reasons.get(IssueKind.NESTED, "")
    error = reasons.get(IssueKind.UNREACHED, "") or (nested if diff.state.at else "")
    if error:
        return replace(report, error=report.error or error)
    return (
        replace(report, notes=tuple(dict.fromkeys((*report.notes, nested)))) if nested else report
    )


def _iter_changes(diff: ModuleDiff, report: LoadingInfo) -> Iterator[Change]:
    for key in report.missing_keys:
        if key in diff.module.saved_tensors:
            yield Missing(diff.module.saved_tensors[key].tensor)
    for key, shape in report.mismatched_shapes.items():
        if key in diff.module.saved_tensors:
            expected = diff.module.saved_tensors[key].tensor
            actual = replace(expected, shape=shape, stride=contiguous_stride(shape), storage=None)
            yield Changed(expected, actual, frozenset({"shape"}))
    for key in report.unexpected_keys:
        yield Unexpected(_find_file_tensor(diff.state, report.file_names.get(key, key), key))


def _find_file_tensor(state: StateDict, file_key: str, key: str) -> TensorInfo:
    """Return the tensor that the framework names `key`; one without a shape if it is not known."""
    tensor = state.tensors.get(file_key)
    if tensor is None:
        return TensorInfo(key, (), "unknown", (), 0, None)
    return tensor if tensor.key == key else replace(tensor, key=key)


def _iter_load_steps(report: LoadingInfo) -> Iterator[LoadStep]:
    for conversion in report.conversions:
        is_renamed = conversion.operation == LoadStepKind.RENAMED
        yield LoadStep(
            LoadStepKind.RENAMED if is_renamed else LoadStepKind.CONVERTED,
            conversion.key,
            conversion.file_keys[0],
            conversion.operation,
            conversion.file_keys,
        )
    for key in report.ignored_keys:
        yield LoadStep(LoadStepKind.DISCARDED, key)
