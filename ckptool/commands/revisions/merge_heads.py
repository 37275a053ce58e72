"""Chain with two heads -> one that is linear: the later head follows the earlier one."""

from pathlib import Path

from msgspec.structs import replace

from ckptool.commands.revisions.skeleton import apply_to_skeleton
from ckptool.errors import RevisionError
from ckptool.formats.files.atomic import write_file
from ckptool.reports.revisions.revision import (
    RevisionOutcome,
    RevisionReport,
    build_revision_report,
)
from ckptool.revisions.chain import Chain
from ckptool.revisions.recorded_state import RecordedState, compare_states
from ckptool.revisions.revision import Revision, format_revision


def merge_heads(chain: Chain, *, dry_run: bool) -> RevisionReport:
    """Put the branch of the last head after the other head, and record the states anew.

    Raises:
        RevisionError: there are not two heads, a revision of the branch is in Python, or its steps
            do not apply after those of the other one.
    """
    if len(chain.heads) != 2:
        count = "one head" if len(chain.heads) == 1 else f"{len(chain.heads)} heads"
        raise RevisionError(f"{chain.folder}: has {count}: --merge joins two")
    first, last = sorted(chain.heads, key=lambda r: (r.created, r.name))
    branch = _list_branch(chain, last, first)
    state, parent = first.state, first
    moved: list[Revision] = []
    for revision in branch:
        state = _apply_revision(revision, state)
        moved.append(replace(revision, parent=parent.revision, state=state))
        parent = moved[-1]
    files: dict[Path, bytes] = {r.path: format_revision(r).encode() for r in moved}
    if not dry_run:
        for path, content in files.items():
            write_file(path, content, force=True)
    note = f"{moved[0].name} follows {first.name} now; comments in its file are gone"
    difference = compare_states(first.state, state)
    return build_revision_report(
        RevisionOutcome(
            tuple(moved), files, difference, notes=(note,), is_merge=True, is_written=not dry_run
        )
    )


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
        raise RevisionError(
            f"{revision.name} is in Python: what it makes of another state is known only by "
            "running it: set `parent` and the recorded state in its file by hand"
        )
    result = apply_to_skeleton(revision.path, state, revision.plan.ops)
    kept_ties = {k: to for k, to in {**state.ties, **revision.state.ties}.items()
                 if k in result.forms and to in result.forms}  # fmt: skip
    return RecordedState(result.forms, kept_ties)
