"""Describe checkpoints, and compare them with modules and with each other."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ckptool import report
from ckptool.api.drawing import draw_checkpoints, draw_loading, draw_revision
from ckptool.api.target import PathLike, need_target, notes_on, opened
from ckptool.compare import loading, revision
from ckptool.config import Config
from ckptool.errors import ReadError, UsageError
from ckptool.formats.limits import DEFAULT, Limits
from ckptool.model import Checkpoint
from ckptool.policy import Policy, judge
from ckptool.reporting.reading import inspected, loaded, revised
from ckptool.rules import run
from ckptool.rules.registry import in_order

if TYPE_CHECKING:
    from torch import nn


def inspect(
    paths: PathLike | Sequence[PathLike],
    *,
    policy: Policy | None = None,
    limits: Limits = DEFAULT,
    pictures: bool = False,
) -> report.InspectReport:
    """Describe checkpoints: what they hold and name, without loading or executing anything.

    A path that cannot be read is reported in `errors`, and the others are described all the same.
    With `pictures` the values of small masks are read, so that they can be drawn.
    """
    checkpoints: list[Checkpoint] = []
    errors: list[str] = []
    for path in [paths] if isinstance(paths, str | Path) else paths:
        try:
            checkpoints.append(opened(path, limits))
        except ReadError as error:
            errors.append(str(error))
    findings = in_order(f for one in checkpoints for f in run([one], one.path))
    verdict = judge(findings, policy or Policy())
    found = inspected(tuple(checkpoints), verdict, tuple(errors))
    return draw_checkpoints(found, checkpoints) if pictures else found


def diff(
    path: PathLike,
    new: PathLike | None = None,
    *,
    module: "str | nn.Module | None" = None,
    kwargs: Mapping[str, object] | None = None,
    at: str | None = None,
    explain: str | None = None,
    values: bool = True,
    inputs: object = None,
    policy: Policy | None = None,
    limits: Limits = DEFAULT,
    config: Config | None = None,
    pictures: bool = False,
) -> report.DiffModuleReport | report.DiffFilesReport:
    """Compare a checkpoint with the module that should load it, or with another checkpoint.

    Args:
        path: the checkpoint; the old one of two.
        new: the newer checkpoint; without it, the checkpoint is compared with a module.
        module: "package.module:Name" or a live module; without it the configuration names one.
        kwargs: constructor arguments.
        at: place of the state in the file ("state_dict"); without it the best match is taken.
        explain: a key of which everything is to be told.
        values: whether two files' values are compared.
        inputs: as for `verify`: with them the module is run, and what that shows is reported.
        policy: which findings are reported, and from which level on they fail.
        limits: bounds on what a file may cost.
        config: the configuration; without it the nearest one from the current directory up.
        pictures: read the values of small buffers, so that they can be drawn.

    Raises:
        ReadError: a file cannot be read.
        ModuleError: the module cannot be imported or built.
        UsageError: no module is named, or the options do not go together.
    """
    if new is not None:
        if module is not None:
            raise UsageError(
                "-m names a module for one checkpoint; with two checkpoints leave it out"
            )
        before, after = opened(path, limits), opened(new, limits)
        changed = revision(before, after, at, look_at_values=values)
        found = judge(run([changed], new), policy or Policy(), differs=changed.differs)
        told = revised(changed, found, explain)
        return draw_revision(told, changed) if pictures else told
    checkpoint = opened(path, limits)
    target = need_target(Path(path), module, kwargs, at, config)
    hyper = target.hyper(checkpoint)
    state, seen = target.exercised(hyper, target.examined(hyper), inputs)
    met = loading(checkpoint, state, target.at)
    findings = run([met, state, checkpoint, *seen], path)
    found = judge(findings, policy or Policy(), differs=not met.strict)
    said = loaded(met, found, notes_on(met, target.at, hyper), explain)
    return draw_loading(said, met) if pictures else said
