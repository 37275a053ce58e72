"""Checkpoint x module -> DiffModuleReport; two checkpoints -> DiffFilesReport."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from ckptool import report
from ckptool.api.comparing import How, diff_files
from ckptool.api.drawing import draw_loading
from ckptool.api.refusing import refuse
from ckptool.api.target import Named, PathLike, Target, need_target, notes_on, opened
from ckptool.compare import Loading, loading
from ckptool.config import Config
from ckptool.errors import UsageError
from ckptool.formats.limits import DEFAULT, Limits
from ckptool.locations import locate
from ckptool.model import Checkpoint
from ckptool.policy import Policy, judge
from ckptool.reporting.reading import loaded
from ckptool.rules import run
from ckptool.valued import Valued, valued, with_values

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from torch import nn

    from ckptool.verification.facts import Exercise

_FOR_A_MODULE: Final = "is for the module of one checkpoint; with two checkpoints leave it out"


def diff(  # noqa: PLR0913
    path: PathLike,
    new: PathLike | None = None,
    *,
    module: "str | nn.Module | None" = None,
    kwargs: Mapping[str, object] | None = None,
    at: str | None = None,
    explain: str | None = None,
    values: bool | None = None,
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
    pictures: bool = False,
) -> report.DiffModuleReport | report.DiffFilesReport | report.PartReport:
    """Compare a checkpoint with the module that should load it, or with another checkpoint.

    Args:
        path: the checkpoint; the old one of two.
        new: the newer checkpoint; None compares the checkpoint with a module.
        module: "package.module:Name" or a live module; None takes the configuration's.
        kwargs: constructor arguments.
        at: dotted place of the state in the file ("state_dict"); None takes the best match.
        explain: a key to explain in full.
        values: compare values. None is True for two files and False with a module, where it adds
            the rules CK4xx and CK213, and CK208 by fingerprint.
        rtol: two files: values pass that differ by at most `atol + rtol * abs(old)`.
        atol: the same.
        jobs: two files: number of threads that compare values.
        dask: two files: address of a Dask scheduler to compare values on.
        executor: two files: an executor to compare values on.
        shard: two files: (I, N) compares the I-th of N shards of the values; see `merge`.
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
    how = How(values is not False, rtol, atol, jobs, dask, executor, shard, progress)
    if new is not None:
        given = {"-m": module is not None, "-k": bool(kwargs), "--input": inputs is not None}
        refuse(given, _FOR_A_MODULE)
        return diff_files(
            path, new, how, at=at, explain=explain, policy=policy or Policy(), limits=limits,
            pictures=pictures,
        )  # fmt: skip
    if how.of_values():
        raise UsageError(f"{how.of_values()} is for the values of two checkpoints: name both")
    place = locate(path)
    checkpoint = opened(place, limits)
    target = need_target(place, Named(module, kwargs, at), config)
    found = _met(checkpoint, target, inputs, values=bool(values))
    met = found.loading
    verdict = judge(run(found.subjects, place), policy or Policy(), differs=not met.strict)
    notes = notes_on(met, target.at, target.hyper(checkpoint))
    said = loaded(met, verdict, notes, explain, found.values.skipped if found.values else ())
    return draw_loading(said, met) if pictures else said


class _Met(Struct, frozen=True):
    """ModuleDiff of a checkpoint and its module, with effects of forward and statistics."""

    loading: Loading
    exercises: "tuple[Exercise, ...]"
    values: Valued | None

    @property
    def subjects(self) -> tuple[object, ...]:
        looked = () if self.values is None else (self.values,)
        met = self.loading
        return (met, met.module, met.checkpoint, *looked, *self.exercises)


def _met(checkpoint: Checkpoint, target: Target, inputs: object, *, values: bool) -> _Met:
    hyper = target.hyper(checkpoint)
    state, exercises = target.exercised(hyper, target.examined(hyper), inputs)
    met = loading(checkpoint, state, target.at)
    looked = valued(checkpoint) if values else None
    return _Met(with_values(met) if values else met, exercises, looked)
