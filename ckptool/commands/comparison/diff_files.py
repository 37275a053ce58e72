"""Compare two checkpoints, on one machine or as one shard of several."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from ckptool.commands.comparison.previews import add_checkpoint_diff_previews
from ckptool.commands.sources.checkpoint_paths import PathLike, is_live
from ckptool.commands.sources.live_objects import open_sources
from ckptool.commands.sources.option_checks import reject_negative_numbers, reject_unused_options
from ckptool.commands.sources.roles import ROLES, parse_role_names
from ckptool.compare.checkpoint_diff import CheckpointDiff, build_checkpoint_diff
from ckptool.compare.diff_shards import (
    assign_shard,
    build_shard,
    encode_shard,
)
from ckptool.compare.structural_diff import StructuralDiff, compare_structure
from ckptool.compare.value_checks import plan_value_checks, run_value_checks
from ckptool.errors import UsageError
from ckptool.formats.limits import Limits
from ckptool.policy import Policy, judge
from ckptool.reports.diff_files import (
    DiffFilesReport,
    DiffShardReport,
    build_checkpoint_diff_report,
    build_diff_shard_report,
)
from ckptool.rules import run_rules
from ckptool.values.batches.batch_runner import JOBS, BatchRunner
from ckptool.values.batches.dask import dask_batch_runner
from ckptool.values.difference import Tolerances
from ckptool.values.progress import start_step

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from torch import nn


class ValueComparisonOptions(Struct, frozen=True):
    """Options for comparing the values of two files: tolerances and where to run; see `diff`."""

    values: bool = True
    rtol: float | None = None
    atol: float | None = None
    jobs: int | None = None
    dask: str | None = None
    executor: "Executor | None" = None
    shard: tuple[int, int] | None = None
    progress: Callable[[int], None] | None = None

    def __post_init__(self) -> None:
        """Validate the options.

        Raises:
            UsageError: an option is out of bounds, or two options exclude each other.
        """
        reject_negative_numbers({"--rtol": self.rtol, "--atol": self.atol})
        if self.jobs is not None and self.jobs < 1:
            raise UsageError(f"--jobs {self.jobs}: expected 1 or more")
        if self.shard is not None and not 1 <= self.shard[0] <= self.shard[1]:
            shard_index, shard_count = self.shard
            raise UsageError(
                f"--shard {shard_index}/{shard_count}: expected I/N with I from 1 to N"
            )
        if not self.values and self.first_value_option():
            raise UsageError(f"--no-values excludes {self.first_value_option()}")
        if self.dask is not None and self.jobs is not None:
            raise UsageError("--jobs and --dask exclude each other")

    def first_value_option(self) -> str:
        """Return the first option set that only applies to values of two files, "" if none."""
        for name in ("rtol", "atol", "jobs", "dask", "shard"):
            if getattr(self, name) is not None:
                return f"--{name}"
        return "" if self.executor is None else "executor"

    @property
    def tolerances(self) -> Tolerances | None:
        if self.rtol is None and self.atol is None:
            return None
        return Tolerances(self.rtol or 0.0, self.atol or 0.0)

    @contextmanager
    def open_batch_runner(self) -> Iterator[BatchRunner]:
        if self.dask is not None:
            with dask_batch_runner(self.dask, self.progress) as runner:
                yield runner
        elif self.executor is not None:
            yield BatchRunner(executor=self.executor, folder=Path.cwd(), progress=self.progress)
        else:
            yield BatchRunner(self.jobs or JOBS, progress=self.progress)


def diff_files(
    old: "PathLike | nn.Module | Mapping[str, Any]",
    new: "PathLike | nn.Module | Mapping[str, Any]",
    options: ValueComparisonOptions,
    *,
    at: str | None,
    explain: str | None,
    policy: Policy,
    limits: Limits,
    pictures: bool = False,
    roles: Sequence[str] | None = None,
) -> DiffFilesReport | DiffShardReport:
    """Compare two files or live objects, or only the shard of values that `options.shard` selects.

    `roles` are those of a live module that are compared; None for all.

    Raises:
        UsageError: live objects are to be compared in other processes.
    """
    if is_live(old) or is_live(new):
        elsewhere = {
            "shard=": options.shard is not None,
            "dask=": options.dask is not None,
            "executor=": options.executor is not None,
        }
        reject_unused_options(elsewhere, "is for files: live objects are in this process alone")
    with open_sources((old, new), replace(limits, contents=True), roles) as (a, b):
        structure = compare_structure(a, b, at)
        if roles is not None and {*ROLES} - {*parse_role_names(roles)}:
            structure = _name_left_out(structure, parse_role_names(roles))
        return _compare_values(structure, options, explain, policy, pictures=pictures)


def _name_left_out(structure: StructuralDiff, roles: Sequence[str]) -> StructuralDiff:
    """Return the comparison with what `roles` leaves out among what was not compared."""
    left_out = f"all that has another role than {' or '.join(roles)}"
    old_parts, new_parts = structure.remainder.parts
    parts = ((*old_parts, left_out), (*new_parts, left_out))
    return replace(structure, remainder=replace(structure.remainder, parts=parts))


def _compare_values(
    structure: StructuralDiff,
    options: ValueComparisonOptions,
    explain: str | None,
    policy: Policy,
    *,
    pictures: bool,
) -> DiffFilesReport | DiffShardReport:
    if not options.values:
        return judge_diff(
            build_checkpoint_diff(structure, None, None), policy, explain, pictures=pictures
        )
    shard_index, shard_count = options.shard or (1, 1)
    value_checks = (
        assign_shard(structure, shard_index, shard_count)
        if options.shard
        else plan_value_checks(structure)
    )
    nbytes = sum(state.nbytes for state in structure.old.states)
    start_step(f"comparing with {structure.new.path.name}", nbytes)
    with options.open_batch_runner() as runner:
        value_results = run_value_checks(
            structure, value_checks, options.tolerances or Tolerances(), runner
        )
    if options.shard is None:
        return judge_diff(
            build_checkpoint_diff(structure, value_results, options.tolerances),
            policy,
            explain,
            pictures=pictures,
        )
    diff_shard = build_shard(structure, shard_index, shard_count, options.tolerances, value_results)
    return build_diff_shard_report(diff_shard, len(value_checks), encode_shard(diff_shard))


def judge_diff(
    checkpoint_diff: CheckpointDiff, policy: Policy, explain: str | None, *, pictures: bool = False
) -> DiffFilesReport:
    verdict = judge(
        run_rules([checkpoint_diff], checkpoint_diff.new.path),
        policy,
        differs=checkpoint_diff.has_differences,
    )
    diff_report = build_checkpoint_diff_report(checkpoint_diff, verdict, explain)
    return add_checkpoint_diff_previews(diff_report, checkpoint_diff) if pictures else diff_report
