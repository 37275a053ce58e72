"""Checkpoint files -> InspectReport: tensors, entries and issues, without executing anything."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Final

from ckptool.commands.sources.checkpoint_paths import PathLike, list_paths, open_checkpoint_or_stdin
from ckptool.errors import ReadError, UsageError
from ckptool.formats.limits import DEFAULT_LIMITS, Limits
from ckptool.model import Checkpoint, join_key
from ckptool.phrases import quote_code
from ckptool.policy import Policy, judge
from ckptool.reports.details.tensor_values import TensorValuesReport, build_values_report
from ckptool.reports.inspect import SORTS, InspectReport, InspectView, build_inspect_report
from ckptool.rules import run_rules
from ckptool.rules.registry import sort_findings
from ckptool.values.checkpoint_statistics import (
    CheckpointStatistics,
    compute_checkpoint_statistics,
)
from ckptool.values.previews import read_preview
from ckptool.values.printed_values import explain_unprinted, print_values

_MAX_COMPARED_KEYS: Final = 2000
"""Maximum number of keys compared for a suggestion."""


def inspect(
    paths: PathLike | Sequence[PathLike],
    *,
    values: bool = False,
    policy: Policy | None = None,
    limits: Limits = DEFAULT_LIMITS,
    pictures: bool = False,
    filter: str = "",  # noqa: A002 - the name of the option
    depth: int = 0,
    sort: str = "",
    key: str = "",
) -> InspectReport:
    """Describe the contents of checkpoints without loading or executing anything.

    With `values`, also compute statistics and apply the rules CK4xx: this reads whole files.
    With `pictures`, read the values of small masks, for drawing. A path that cannot be read is
    reported in `errors`; the others are still described.

    `filter` is a glob of the keys that are shown, or a part of them; `depth` the levels of the tree
    (0: all); `sort` is "name", "size" or "dtype"; `key` is a key or a place whose values are shown.

    Raises:
        UsageError: a file has no such `key`, no key matches `filter`, or `sort` is none of these.
    """
    if sort and sort not in SORTS:
        raise UsageError(f"--sort {sort}: expected one of {', '.join(SORTS)}")
    checkpoints_with_statistics: list[tuple[Checkpoint, tuple[CheckpointStatistics, ...]]] = []
    errors: list[ReadError] = []
    for path in list_paths(paths):
        try:
            checkpoint = open_checkpoint_or_stdin(path, limits)
            checkpoints_with_statistics.append(
                (checkpoint, (compute_checkpoint_statistics(checkpoint),) if values else ())
            )
        except ReadError as error:
            errors.append(error)
    findings = sort_findings(
        finding
        for opened_checkpoint, statistics in checkpoints_with_statistics
        for finding in run_rules([opened_checkpoint, *statistics], opened_checkpoint.path)
    )
    skipped_values = tuple(
        skip
        for _, statistics in checkpoints_with_statistics
        for statistics_result in statistics
        for skip in statistics_result.skipped
    )
    checkpoints = tuple(opened_checkpoint for opened_checkpoint, _ in checkpoints_with_statistics)
    inspect_report = build_inspect_report(
        checkpoints,
        judge(findings, policy or Policy()),
        errors,
        skipped_values,
        InspectView(filter, depth, sort),
        tuple(read_values(checkpoint, key) for checkpoint in checkpoints) if key else (),
    )
    if filter and checkpoints and not any(c.states for c in inspect_report.checkpoints):
        raise UsageError(f"--filter {filter}: no key of the {_name_files(checkpoints)} matches")
    if not pictures:
        return inspect_report
    from ckptool.commands.comparison.previews import add_checkpoint_previews

    return add_checkpoint_previews(inspect_report, checkpoints)


def _name_files(checkpoints: Sequence[Checkpoint]) -> str:
    return f"file {checkpoints[0].path}" if len(checkpoints) == 1 else f"{len(checkpoints)} files"


def read_values(checkpoint: Checkpoint, key: str) -> TensorValuesReport:
    """Return the values of the tensor or plain value called `key`, a key of a state or a place.

    Raises:
        UsageError: there is no such key in the file.
        ReadError: the file became unreadable.
    """
    tensors = {
        join_key(state.at, name): tensor
        for state in checkpoint.states
        for name, tensor in (*state.unsaved_tensors.items(), *state.tensors.items())
    }
    matches = [place for place, tensor in tensors.items() if key in {place, tensor.key}]
    if matches:
        place = key if key in matches else matches[0]
        tensor = tensors[place]
        if reason := explain_unprinted(tensor):
            return build_values_report(place, tensor, "", reason, None)
        return build_values_report(place, tensor, print_values(tensor), "", read_preview(tensor))
    texts = {entry.at: entry.text for entry in checkpoint.entries}
    if key in texts:
        return TensorValuesReport(place=key, text=texts[key])
    keys = (tensor.key for tensor in tensors.values())
    names = [*dict.fromkeys((*tensors, *texts, *keys))][:_MAX_COMPARED_KEYS]
    close_matches = get_close_matches(key, names, n=1)
    hint = f"; did you mean {quote_code(close_matches[0])}?" if close_matches else ""
    raise UsageError(f"{checkpoint.path}: --key {key}: no such key in the file{hint}")
