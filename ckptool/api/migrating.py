"""Checkpoint x module or plan -> MigrateReport and the migrated file."""

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
    """Write a checkpoint that a module loads strictly; with `dry_run` only return the plan.

    Args:
        source: the checkpoint; it is never modified.
        target: path of the result; replaced atomically.
        module: "package.module:Name" or a live module; None takes the configuration's; if there is
            none either, the state is only converted and no plan is derived.
        kwargs: constructor arguments.
        at: dotted place of the state in the file ("state_dict"); None takes the best match.
        to: "safetensors" or "pth"; None decides by the target's suffix.
        plan: a plan, or the path of a plan file; None derives the plan.
        reverse: invert the plan.
        inject: key -> source of its value: "attribute", "constructor", "file:PATH#KEY",
            "npz:PATH#KEY", "literal:VALUE", "seed:N" or "zeros".
        drop: keys to leave out.
        from_: a pickled module, or another file, whose attributes are used as well.
        drop_extra: leave out entries that the container cannot hold.
        force: replace an existing target.
        dry_run: write nothing.
        save_plan: path to write the plan to.
        max_shard_size: maximum bytes of one file of a folder.
        links: unchanged files of a folder may be hard links to the source's.
        provenance: record the plan and the digests in the result.
        inputs: arguments of forward, as for `verify`: the result is then run before it is placed.
        device: device to run it on.
        old_module: the module of the source, which must then compute the same outputs.
        tolerance: absolute and relative tolerance for its outputs; None is exact on the same
            device.
        progress: called with the number of bytes written since the last call.
        policy: reported findings about the result.
        limits: bounds on the memory and time that reading a file may take.
        config: the configuration; None takes the nearest one from the current directory up.
        pictures: read the values of small buffers, for drawing.

    Raises:
        ReadError: the source cannot be read.
        ModuleError: the module cannot be imported or built.
        PlanError: a decision is open, or the plan does not apply.
        WriteError: the result could not be completed; the target is unchanged.
        UsageError: the options exclude each other.
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
    """Old module to compare the migrated file's outputs with, and the tolerance."""

    module: "str | nn.Module | None"
    donor: PathLike | None
    """File with its pickled attributes, if the source lacks them."""
    tolerance: float | None


def _proof(
    source: Location,
    target: Target | None,
    inputs: object,
    device: str,
    older: "_Older",
    limits: Limits,
) -> "Proof | None":
    """Return a function that verifies a migrated file, also against the source in its old module.

    None without inputs.

    Raises:
        UsageError: there are inputs and no module, or options that need inputs without any.
    """
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
