"""Checkpoint x module -> DiffModuleReport; two checkpoints -> DiffFilesReport."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.commands.comparison.diff_files import ValueComparisonOptions, diff_files
from ckptool.commands.comparison.previews import add_module_diff_previews
from ckptool.commands.sources.checkpoint_paths import (
    PathLike,
    is_live,
    name_kind,
    open_checkpoint_or_stdin,
    require_path,
)
from ckptool.commands.sources.module_choice import (
    ModuleOptions,
    describe_choices,
    find_target,
    need_target,
)
from ckptool.commands.sources.option_checks import reject_unused_options
from ckptool.commands.target import ModuleTarget
from ckptool.commands.worker.requests import DescribeModule, ProbeLoad
from ckptool.commands.worker.worker import ModuleWorker, get_worker, start_early
from ckptool.compare.loader_diff import LoaderAnswer, build_loaded_diff
from ckptool.compare.module_diff import ModuleDiff
from ckptool.compare.module_values import add_value_checks
from ckptool.compare.states import find_part_at, require_undamaged
from ckptool.config import ProjectConfig
from ckptool.errors import UsageError
from ckptool.formats.limits import DEFAULT_LIMITS, Limits
from ckptool.locations import Location, parse_location
from ckptool.model import Checkpoint
from ckptool.policy import Policy, judge
from ckptool.reports.common import SkippedReport
from ckptool.reports.diff import DiffModuleReport, build_module_diff_report
from ckptool.reports.diff_files import DiffFilesReport, DiffShardReport
from ckptool.rules import run_rules
from ckptool.values.checkpoint_statistics import (
    CheckpointStatistics,
    compute_checkpoint_statistics,
)

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from torch import nn

    from ckptool.verification.result import ForwardEffects

_MODULE_ONLY: Final = "is for the module of one checkpoint; with two checkpoints leave it out"


def diff(  # noqa: PLR0913
    path: "PathLike | nn.Module | Mapping[str, Any]",
    new: "PathLike | nn.Module | Mapping[str, Any] | None" = None,
    *,
    module: "str | nn.Module | Callable[..., nn.Module] | None" = None,
    kwargs: Mapping[str, object] | None = None,
    fresh: "Callable[[], nn.Module] | None" = None,
    loader: str | None = None,
    base: PathLike | None = None,
    at: str | None = None,
    into: str | None = None,
    explain: str | None = None,
    values: bool | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    jobs: int | None = None,
    dask: str | None = None,
    executor: "Executor | None" = None,
    shard: tuple[int, int] | None = None,
    roles: Sequence[str] | None = None,
    inputs: object = None,
    progress: Callable[[int], None] | None = None,
    policy: Policy | None = None,
    limits: Limits = DEFAULT_LIMITS,
    config: ProjectConfig | None = None,
    pictures: bool = False,
) -> DiffModuleReport | DiffFilesReport | DiffShardReport:
    """Compare a checkpoint with the module that should load it, or with another checkpoint.

    With two arguments, either may be a live module or a state_dict. Their tensors are then compared
    by key and value, including tensors of a module that are not in its state_dict. To find out
    whether a file loads into a live module, use `diff(path, module=model)`.

    Args:
        path: the checkpoint; the old one of two.
        new: the newer checkpoint; None compares the checkpoint with a module.
        module: "package.module:Name", a live module, or a class or function to call; None takes
            the configuration's.
        kwargs: constructor arguments; for a live module, those it was built with.
        fresh: function that builds a module like a live one, if `kwargs` do not determine it.
        loader: framework whose loader loads it ("transformers", ...), or "torch" for
            load_state_dict; None selects it by the folder.
        base: folder of the model that an adapter is for; None for the one that it names.
        at: dotted place of the state in the file ("state_dict"); None takes the best match.
        into: path of a sub-module of the module ("encoder"): the checkpoint is compared with that
            alone.
        explain: a key to explain in full.
        values: compare values. None is True for two files and False with a module, where it adds
            the rules CK4xx and CK213, and CK208 by fingerprint.
        rtol: two files: values pass that differ by at most `atol + rtol * abs(old)`.
        atol: the same.
        jobs: two files: number of threads or processes that compare values.
        dask: two files: address of a Dask scheduler to compare values on.
        executor: two files: an executor to compare values on.
        shard: two files: (I, N) compares the I-th of N shards of the values; see `merge`.
        roles: two arguments, one of them a live module: the roles of the tensors that are compared,
            of "parameter", "buffer", "non-persistent-buffer" and "attribute"; None for all.
            ("parameter", "buffer") is what a state_dict has.
        inputs: as for `verify`: the module is then run, and the effects of forward are reported.
        progress: called from time to time with the number of bytes compared.
        policy: reported findings, and the level from which they fail.
        limits: bounds on the memory and time that reading a file may take.
        config: the configuration; None takes the nearest one from the current directory up.
        pictures: read the values of small buffers, for drawing.

    Raises:
        ReadError: a file cannot be read.
        ModuleError: the module cannot be imported or built.
        UsageError: no module is named, or the options exclude each other.
        WorkerError: the cluster or executor failed.
    """
    options = ValueComparisonOptions(
        values is not False, rtol, atol, jobs, dask, executor, shard, progress
    )
    module_options = ModuleOptions(module, kwargs, at, into, loader, base, fresh)
    if new is not None:
        _reject_module_options(module_options, inputs)
        report = diff_files(
            path, new, options, at=at, explain=explain, policy=policy or Policy(), limits=limits,
            pictures=pictures, roles=roles,
        )  # fmt: skip
        return _name_unchecked_load(report, path, new)
    location = _parse_only_checkpoint(path)
    _reject_two_file_options(options, roles)
    if into is not None:
        reject_unused_options({"--input": inputs is not None}, "runs the whole module: not --into")
    worker = get_worker()
    start_early(worker, find_target(location, module_options, config), location)
    checkpoint = open_checkpoint_or_stdin(location, limits, loader)
    require_undamaged(checkpoint)
    module_target = need_target(
        location,
        module_options,
        config,
        checkpoint,
        other_choice=", or give a second checkpoint",
    )
    result = _compare_with_module(checkpoint, module_target, inputs, worker, values=bool(values))
    module_diff = result.module_diff
    verdict = judge(
        run_rules(result.subjects, location), policy or Policy(), differs=not module_diff.is_strict
    )
    notes = describe_choices(module_diff, module_target)
    diff_report = build_module_diff_report(
        module_diff, verdict, notes, explain, result.statistics.skipped if result.statistics else ()
    )
    return add_module_diff_previews(diff_report, module_diff) if pictures else diff_report


def _reject_module_options(module_options: ModuleOptions, inputs: object) -> None:
    """Raise UsageError for an option that is for a module, where two checkpoints are compared."""
    unused_options = {
        "-m": module_options.module is not None,
        "-k": bool(module_options.kwargs),
        "--loader": module_options.loader is not None,
        "--base": module_options.base is not None,
        "--input": inputs is not None,
        "--into": module_options.into is not None,
    }
    reject_unused_options(unused_options, _MODULE_ONLY)


def _reject_two_file_options(options: ValueComparisonOptions, roles: Sequence[str] | None) -> None:
    """Raise UsageError for an option on two checkpoints, where there is one."""
    reject_unused_options({"roles=": roles is not None}, "selects of two arguments: give both")
    if options.first_value_option():
        raise UsageError(
            f"{options.first_value_option()} compares values of two checkpoints: give both"
        )


def _parse_only_checkpoint(path: object) -> Location:
    """Return the location of the checkpoint that a module is compared with.

    Raises:
        UsageError: it is a live module or a state_dict, or not a path.
    """
    if is_live(path):
        raise UsageError(
            f"diff of {name_kind(path)} needs a second argument: a checkpoint, a module or a "
            "state_dict; diff(path, module=...) says how a module loads a checkpoint"
        )
    return parse_location(require_path(path))


def _name_unchecked_load(
    report: DiffFilesReport | DiffShardReport, old: object, new: object
) -> DiffFilesReport | DiffShardReport:
    """Return the report; of a file and a live module, with the question that it does not answer."""
    files = [side for side in (old, new) if not is_live(side)]
    if len(files) != 1 or not any(hasattr(side, "named_modules") for side in (old, new)):
        return report
    skipped = SkippedReport(
        what=f"whether {files[0]} loads into the module",
        reason=f"the tensors were compared as they are; use diff({str(files[0])!r}, module=...)",
    )
    return replace(report, skipped=(*report.skipped, skipped))


class _ModuleDiffResult(Struct, frozen=True):
    """ModuleDiff of a checkpoint and its module, with effects of forward and statistics."""

    module_diff: ModuleDiff
    forward_effects: "tuple[ForwardEffects, ...]"
    statistics: CheckpointStatistics | None

    @property
    def subjects(self) -> tuple[object, ...]:
        statistics = () if self.statistics is None else (self.statistics,)
        module_diff = self.module_diff
        return (
            module_diff,
            module_diff.module,
            module_diff.checkpoint,
            *statistics,
            *self.forward_effects,
        )


def _compare_with_module(
    checkpoint: Checkpoint,
    module_target: ModuleTarget,
    inputs: object,
    worker: ModuleWorker,
    *,
    values: bool,
) -> _ModuleDiffResult:
    file_arguments = module_target.read_file_arguments(checkpoint)
    facts = worker.ask(DescribeModule(module_target, file_arguments, inputs))
    module_info, at = facts.apply_effects(), module_target.at
    if module_target.into and at is None:
        at = find_part_at(checkpoint, module_info, module_target.into)

    def ask_loader(diff: ModuleDiff) -> LoaderAnswer:
        return worker.ask(ProbeLoad(module_target, file_arguments, diff))

    module_diff = build_loaded_diff(checkpoint, module_info, at, ask_loader)
    statistics = compute_checkpoint_statistics(checkpoint) if values else None
    return _ModuleDiffResult(
        add_value_checks(module_diff) if values else module_diff, facts.forward_effects, statistics
    )
