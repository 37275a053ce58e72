"""Chain with two heads -> one that is linear: the later head follows the earlier one."""

from pathlib import Path
from typing import Final

from msgspec.structs import replace

from ckptool.commands.revisions.chain_steps import Direction, require_python
from ckptool.commands.revisions.fixtures import list_fixture_paths
from ckptool.commands.revisions.revision_files import write_chain_files
from ckptool.commands.revisions.skeleton import apply_to_skeleton
from ckptool.commands.target import ModuleTarget
from ckptool.commands.worker.revision_requests import TracePythonStep
from ckptool.commands.worker.worker import get_worker
from ckptool.errors import ModuleError, RevisionError, UsageError
from ckptool.phrases import quote_shell
from ckptool.reports.revisions.revision import (
    RevisionOutcome,
    RevisionReport,
    build_revision_report,
)
from ckptool.revisions.chain import Chain
from ckptool.revisions.recorded_state import RecordedState, compare_states
from ckptool.revisions.revision import Revision, format_revision, name_revision

_MAX_TRACED_NBYTES: Final = 1 << 30
"""Bytes of a state up to which a Python revision is run over zeros, to see what it makes of it."""


def merge_heads(chain: Chain, *, run_python: bool, dry_run: bool) -> RevisionReport:
    """Put the branch of the last head after the other head, and record the states again.

    The function of a revision in Python is run over zeros with the keys and shapes of the other
    head's state.

    Raises:
        RevisionError: there are not two heads, or a revision of the branch does not apply after
            the other head.
        UsageError: a revision is code, which is not to be run.
    """
    if len(chain.heads) != 2:
        count = "one head" if len(chain.heads) == 1 else f"{len(chain.heads)} heads"
        raise RevisionError(f"{chain.folder}: has {count}: --merge joins two")
    first, last = sorted(chain.heads, key=lambda r: (r.created, r.name))
    branch = _list_branch(chain, last, first)
    state, parent = first.state, first
    moved: list[Revision] = []
    for revision in branch:
        if revision.python:
            require_python(revision, Direction.UPGRADE, run_python=run_python)
        state = _apply_revision(revision, state)
        new = replace(revision, parent=parent.revision, state=state)
        moved.append(replace(new, revision=name_revision(new)))
        parent = moved[-1]
    files: dict[Path, bytes] = {r.path: format_revision(r).encode() for r in moved}
    fixtures = [path for r in moved for path in list_fixture_paths(r)]
    if not dry_run:
        heads = [revision.revision for revision in chain.heads]
        write_chain_files(chain.folder, heads, files, removed=fixtures, force=True)
    notes = [f"{moved[0].name} follows {first.name} now; comments in its file are gone"]
    notes += [f"{path} is removed: it is of the state before the merge" for path in fixtures]
    if fixtures:
        notes.append("ckptool revision --fixture FILE keeps a file of the merged code")
    outcome = RevisionOutcome(
        tuple(moved), files, compare_states(first.state, state), notes=tuple(notes),
        is_merge=True, is_written=not dry_run,
    )  # fmt: skip
    return build_revision_report(outcome)


def _list_branch(chain: Chain, head: Revision, other: Revision) -> list[Revision]:
    """Return the revisions that lead to `head` and not to `other`, in order."""
    others = {r.revision for r in _list_ancestors(chain, other)}
    return [r for r in reversed(_list_ancestors(chain, head)) if r.revision not in others]


def _list_ancestors(chain: Chain, revision: Revision | None) -> list[Revision]:
    """Return a revision and those before it, the first one last."""
    ancestors: list[Revision] = []
    while revision is not None:
        ancestors.append(revision)
        revision = chain.get_revision(revision.parent)
    return ancestors


def _apply_revision(revision: Revision, state: RecordedState) -> RecordedState:
    if revision.python:
        result = _trace_function(revision, state)
    else:
        result = apply_to_skeleton(revision.path, state, revision.plan.ops)
    kept_ties = {k: to for k, to in {**state.ties, **revision.state.ties}.items()
                 if k in result.forms and to in result.forms}  # fmt: skip
    return RecordedState(result.forms, kept_ties)


def _trace_function(revision: Revision, state: RecordedState) -> RecordedState:
    """Return the state that the function of a Python revision makes of another one.

    Raises:
        RevisionError: it cannot be run over zeros; the message says what to do instead.
    """
    path = revision.python_path
    request = TracePythonStep(ModuleTarget(str(path)), path, state, _MAX_TRACED_NBYTES)
    try:
        return get_worker().ask(request)
    except (ModuleError, UsageError) as error:
        raise RevisionError(
            f"{revision.name} cannot be put after the other head: {error}: remove its files, and "
            f"draft it again: ckptool revision --python -m {quote_shell(revision.message)}"
        ) from error
