"""Describe checkpoints, and compare them with modules and with each other."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ckptool import report
from ckptool.api.comparing import How, diff_files
from ckptool.api.target import PathLike, need_target, notes_on, opened
from ckptool.compare import loading
from ckptool.config import Config
from ckptool.errors import ReadError, UsageError
from ckptool.formats.limits import DEFAULT, Limits
from ckptool.model import Checkpoint
from ckptool.policy import Policy, judge
from ckptool.reporting.reading import inspected, loaded
from ckptool.rules import run

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from torch import nn


def inspect(
    paths: PathLike | Sequence[PathLike],
    *,
    policy: Policy | None = None,
    limits: Limits = DEFAULT,
) -> report.InspectReport:
    """Describe checkpoints: what they hold and name, without loading or executing anything.

    A path that cannot be read is reported in `errors`, and the others are described all the same.
    """
    checkpoints: list[Checkpoint] = []
    errors: list[str] = []
    for path in [paths] if isinstance(paths, str | Path) else paths:
        try:
            checkpoints.append(opened(path, limits))
        except ReadError as error:
            errors.append(str(error))
    verdict = judge(run(checkpoints), policy or Policy())
    return inspected(tuple(checkpoints), verdict, tuple(errors))


def diff(  # noqa: PLR0913
    path: PathLike,
    new: PathLike | None = None,
    *,
    module: "str | nn.Module | None" = None,
    kwargs: Mapping[str, object] | None = None,
    at: str | None = None,
    explain: str | None = None,
    values: bool = True,
    rtol: float | None = None,
    atol: float | None = None,
    jobs: int | None = None,
    dask: str | None = None,
    executor: "Executor | None" = None,
    shard: tuple[int, int] | None = None,
    inputs: object = None,
    progress: Callable[[int], None] | None = None,
    policy: Policy | None = None,
    limits: Limits = DEFAULT,
    config: Config | None = None,
) -> report.DiffModuleReport | report.DiffFilesReport | report.PartReport:
    """Compare a checkpoint with the module that should load it, or with another checkpoint.

    Args:
        path: the checkpoint; the old one of two.
        new: the newer checkpoint; without it, the checkpoint is compared with a module.
        module: "package.module:Name" or a live module; without it the configuration names one.
        kwargs: constructor arguments.
        at: place of the state in the file ("state_dict"); without it the best match is taken.
        explain: a key of which everything is to be told.
        values: whether two files' values are compared.
        rtol: two files: values pass that differ by `atol + rtol * abs(old)` at most.
        atol: the same.
        jobs: two files: threads that compare values.
        dask: two files: address of the Dask scheduler whose workers do it instead.
        executor: two files: what else does it.
        shard: two files: (I, N) looks at the I-th of N parts of the values; see `merge`.
        inputs: as for `verify`: with them the module is run, and what that shows is reported.
        progress: is told how many bytes were compared, from time to time.
        policy: which findings are reported, and from which level on they fail.
        limits: bounds on what a file may cost.
        config: the configuration; without it the nearest one from the current directory up.

    Raises:
        ReadError: a file cannot be read.
        ModuleError: the module cannot be imported or built.
        UsageError: no module is named, or the options do not go together.
        WorkerError: a cluster did not do its work.
    """
    how = How(values, rtol, atol, jobs, dask, executor, shard, progress)
    if new is not None:
        if module is not None:
            raise UsageError(
                "-m names a module for one checkpoint; with two checkpoints leave it out"
            )
        return diff_files(
            path, new, how, at=at, explain=explain, policy=policy or Policy(), limits=limits
        )
    if how.of_values():
        raise UsageError(f"{how.of_values()} is for the values of two checkpoints: name both")
    checkpoint = opened(path, limits)
    target = need_target(Path(path), module, kwargs, at, config)
    hyper = target.hyper(checkpoint)
    state, seen = target.exercised(hyper, target.examined(hyper), inputs)
    met = loading(checkpoint, state, target.at)
    found = judge(run([met, state, checkpoint, *seen]), policy or Policy(), differs=not met.strict)
    return loaded(met, found, notes_on(met, target.at, hyper), explain)
