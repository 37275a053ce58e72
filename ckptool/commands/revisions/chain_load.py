"""Checkpoint x live module -> the plan with which a load upgrades an old file in memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from ckptool.commands.revisions.chain_steps import ChainRun, list_steps, open_chain_plan
from ckptool.commands.revisions.project_chain import default_folder, find_entry_folder
from ckptool.commands.worker.worker import get_worker
from ckptool.compare.contracts.contract import build_module_contract
from ckptool.config import load_config
from ckptool.errors import ConfigError, RevisionError
from ckptool.formats.limits import Limits
from ckptool.migration.plan.plan_file import Plan
from ckptool.model import Checkpoint
from ckptool.modules.live.saved_state import describe_saved_state
from ckptool.revisions.chain import Chain, read_chain
from ckptool.revisions.current_revision import (
    CurrentRevision,
    RevisionStatus,
    find_current_revision,
)
from ckptool.revisions.recorded_state import RecordedState, compare_states, record_contract
from ckptool.revisions.revision import Revision

if TYPE_CHECKING:
    from torch import nn


class ChainLoad(Struct, frozen=True):
    """How a file gets through the chain of its project into a live module."""

    plan: Plan | None = None
    """Steps to the head; None if the file needs none."""
    at: str | None = None
    """Place of the state that the steps are for; None without steps."""
    notes: tuple[str, ...] = ()


@contextmanager
def open_chain_load(
    module: "nn.Module",
    checkpoint: Checkpoint,
    at: str | None,
    revisions: str | Path | Literal[False] | None,
    limits: Limits,
) -> Iterator[ChainLoad]:
    """Give the steps of an old file; values that Python revisions computed exist in the context.

    Args:
        module: a live module.
        checkpoint: the file.
        at: dotted place of the state; None takes the one that fits best.
        revisions: folder of the chain; None takes that of the current folder's project, if the
            module has the keys of its head; False none.
        limits: bounds on the memory and time that reading a file may take.

    Raises:
        RevisionError: the file is newer than the code, or no way leads from it to the head.
        ModuleError: a Python revision raised.
    """
    try:
        chain = None if revisions is False else _find_chain(module, revisions)
    except ConfigError as error:  # a load needs no configuration: only a chain is named there
        yield ChainLoad(notes=(f"not checked: a chain of migrations: {error}",))
        return
    if chain is None:
        yield ChainLoad()
        return
    current_revision = find_current_revision(checkpoint, chain, at)
    start = _choose_start(current_revision, chain)
    if start is None or start == chain.head:
        yield ChainLoad(notes=(f"{current_revision.text} (the head is {chain.head.name})",))
        return
    assert current_revision.difference is not None
    run = ChainRun(
        checkpoint,
        current_revision.state,
        current_revision.prefix,
        start.state.ties,
        current_revision.difference,
        get_worker(),
        limits,
        run_python=True,
    )
    taken = chain.list_between(start, chain.head)
    with open_chain_plan(run, list_steps(taken)) as chain_plan:
        scripts = [f"ran {r.python_path}" for r in taken if r.python]
        note = f"{current_revision.text}; upgraded in memory to {chain.head.name}"
        unchecked = [f"not checked: {chain_plan.unchecked}"] if chain_plan.unchecked else []
        yield ChainLoad(chain_plan.plan, current_revision.state.at, (note, *scripts, *unchecked))


def _choose_start(current_revision: CurrentRevision, chain: Chain) -> Revision | None:
    """Return the revision that a file is upgraded from; None to load it as it is.

    Raises:
        RevisionError: the file is newer than the code, or may be at several older revisions.
    """
    if current_revision.kind is RevisionStatus.NEWER:
        raise RevisionError(current_revision.text)
    if (
        current_revision.kind is RevisionStatus.AMBIGUOUS
        and chain.head not in current_revision.candidates
    ):
        raise RevisionError(current_revision.text.replace("--from", "ckptool upgrade --from"))
    return current_revision.revision if current_revision.is_known else None


def _find_chain(module: "nn.Module", revisions: str | Path | Literal[False] | None) -> Chain | None:
    """Return the chain whose head has the keys of a module; None if the project has none.

    Raises:
        RevisionError: the chain is inconsistent, or was named and is another module's.
    """
    if isinstance(revisions, str | Path):
        chain = read_chain(Path(revisions))
        difference = compare_states(chain.head.state, _record_module(module))
        if not difference.has_same_keys:
            raise RevisionError(
                f"{chain.folder}: {chain.head.name} records another state than the module has: "
                f"{difference.text}"
            )
        return chain
    config = load_config(Path.cwd())
    folders = {find_entry_folder(entry, config) for entry in config.settings.models}
    folders |= set() if config.settings.models else {default_folder(config)}
    chains = [
        read_chain(folder)
        for folder in sorted(folder for folder in folders if folder is not None)
        if folder.is_dir() and any(folder.glob("*.toml"))
    ]
    if not chains:
        return None
    state = _record_module(module)
    fitting = (c for c in chains if compare_states(c.head.state, state).has_same_keys)
    return next(fitting, None)


def _record_module(module: "nn.Module") -> RecordedState:
    info = describe_saved_state(module, type(module).__qualname__)
    return record_contract(build_module_contract(info))
