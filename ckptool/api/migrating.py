"""Migrate a checkpoint."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ckptool import report
from ckptool.api.drawing import draw_loading, draw_state
from ckptool.api.refusing import refuse
from ckptool.api.target import Named, PathLike, Target, find_target, opened, written_here
from ckptool.config import Config
from ckptool.errors import UsageError
from ckptool.formats import open_checkpoint
from ckptool.formats.limits import DEFAULT, Limits
from ckptool.locations import Location, locate
from ckptool.policy import Policy, judge
from ckptool.reporting.migrating import migrated
from ckptool.rules import run

if TYPE_CHECKING:
    from torch import nn

    from ckptool.migration.plan import Plan
    from ckptool.migration.verify import Check, Proof, Written


def migrate(  # noqa: PLR0913
    source: PathLike,
    target: PathLike | None = None,
    *,
    module: "str | nn.Module | None" = None,
    kwargs: Mapping[str, object] | None = None,
    at: str | None = None,
    to: str | None = None,
    plan: "str | Path | Plan | None" = None,
    reverse: bool = False,
    inject: Mapping[str, str] | None = None,
    drop: Sequence[str] = (),
    from_: PathLike | None = None,
    drop_extra: bool = False,
    force: bool = False,
    dry_run: bool = False,
    save_plan: PathLike | None = None,
    max_shard_size: int | None = None,
    links: bool = True,
    provenance: bool = True,
    inputs: object = None,
    device: str = "auto",
    old_module: "str | nn.Module | None" = None,
    tolerance: float | None = None,
    progress: Callable[[int], None] = lambda _: None,
    policy: Policy | None = None,
    limits: Limits = DEFAULT,
    config: Config | None = None,
    pictures: bool = False,
) -> report.MigrateReport:
    """Write a checkpoint that a module loads strictly, or with `dry_run` only say how.

    Args:
        source: the checkpoint; it is never written to.
        target: where the result goes; complete at its name, or not there.
        module: "package.module:Name" or a live module; without it the configuration names one, or
            none is used: then the state is converted, and nothing is derived.
        kwargs: constructor arguments.
        at: place of the state in the file ("state_dict"); without it the best match is taken.
        to: "safetensors" or "pth"; without it the target's suffix decides.
        plan: a plan, or a file with one; without it the plan is derived.
        reverse: undo the plan.
        inject: key -> where its value comes from: "attribute", "constructor", "file:PATH#KEY",
            "npz:PATH#KEY", "literal:VALUE", "seed:N" or "zeros".
        drop: keys to leave out.
        from_: a pickled module, or another file, whose attributes are looked at as well.
        drop_extra: leave out what the container cannot hold.
        force: replace an existing target.
        dry_run: write nothing.
        save_plan: where to write the plan.
        max_shard_size: bytes of one file of a folder.
        links: whether files of a folder that do not change may be hard links to the source's.
        provenance: record the plan and the digests with the result.
        inputs: what forward takes, as for `verify`: the result is then run before it is placed.
        device: where it is run.
        old_module: the module of the source, which then has to compute the same.
        tolerance: how far its outputs may differ, absolute and relative; without it in no bit on
            the same device.
        progress: told how many bytes have just been written.
        policy: which findings about the result are reported.
        limits: bounds on what a file may cost.
        config: the configuration; without it the nearest one from the current directory up.
        pictures: read the values of small buffers, so that they can be drawn.

    Raises:
        ReadError: the source cannot be read.
        ModuleError: the module cannot be imported or built.
        PlanError: something cannot be decided, or the plan does not fit.
        WriteError: the result could not be completed; the target is as it was.
        UsageError: the options do not go together.
    """
    from ckptool.migration.plan import read_file
    from ckptool.migration.run import Request
    from ckptool.migration.run import run as run_migration
    from ckptool.migration.suggest import Wishes

    together = (
        target is not None and save_plan is not None and Path(str(target)) == Path(str(save_plan))
    )
    refuse({"--save-plan": together}, "and -o name one file: name another")
    place = locate(source)
    meets = find_target(place, Named(module, kwargs, at), config)
    done = run_migration(
        Request(
            source=place,
            target=None if target is None else written_here(target),
            module=meets.built if meets else None,
            at=meets.at if meets else at,
            to=to,
            plan=read_file(Path(plan)) if isinstance(plan, str | Path) else plan,
            plan_name=str(plan) if isinstance(plan, str | Path) else "",
            reverse=reverse,
            wishes=Wishes(inject or {}, tuple(drop)),
            donor=None if from_ is None else locate(from_),
            drop_extra=drop_extra,
            force=force,
            dry_run=dry_run,
            save_plan=None if save_plan is None else written_here(save_plan),
            max_shard_size=max_shard_size,
            links=links,
            recorded=provenance,
            limits=limits,
            progress=progress,
            proof=_proof(
                place, meets, inputs, device, _Older(old_module, from_, tolerance), limits
            ),
        )
    )
    met = [] if done.loading is None else [done.loading]
    differs = any(not one.strict for one in met)
    judged = judge(run(met, done.target or place), policy or Policy(), differs=differs)
    said = migrated(done, judged)
    if not pictures:
        return said
    return draw_loading(said, done.loading) if done.loading else draw_state(said, done.state)


@dataclass(frozen=True, slots=True, eq=False)
class _Older:
    """What the result is compared with."""

    module: "str | nn.Module | None"
    donor: PathLike | None
    """The file that has its attributes, where the source has none."""
    tolerance: float | None


def _proof(
    source: Location,
    target: Target | None,
    inputs: object,
    device: str,
    older: "_Older",
    limits: Limits,
) -> "Proof | None":
    """Return what runs a migrated file, and the source in its old module; None without inputs."""
    if inputs is None:
        lone = {"--old-module": older.module is not None, "--device": device != "auto"}
        refuse(lone, "is for running the result: say on what with --input")
        return None
    if target is None:
        raise UsageError("--input: no module is named to run on it: -m package.module:Name")
    from ckptool.migration.proof import prove
    from ckptool.verification import levels, running
    from ckptool.verification.inputs import given
    from ckptool.verification.sides import side

    where, taken = running.choose(device), given(inputs)
    old_module, donor = older.module, older.donor

    def proof(written: "Written") -> "Check":
        before, after = opened(source, limits), open_checkpoint(written.path, limits)
        hyper = target.hyper(before)
        with ExitStack() as stack:
            new = stack.enter_context(side(after, target.module, target.spec(hyper), written.at))
            old = None
            if old_module is not None:
                fits = target.fitting(old_module, hyper)
                old = stack.enter_context(side(before, old_module, fits, target.at))
                if donor is not None:
                    beside = {
                        k: t for s in opened(donor, limits).states for k, t in s.unsaved.items()
                    }
                    old = replace(old, beside=beside | dict(old.beside))
            return prove(written, levels.verify(new, where, taken, old, older.tolerance))

    return proof
