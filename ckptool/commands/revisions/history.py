"""Chain -> HistoryReport: the revisions of a project, the head first."""

from pathlib import Path

from ckptool.commands.revisions.chain_steps import find_irreversible_step
from ckptool.commands.revisions.fixtures import find_fixture
from ckptool.commands.revisions.project_chain import build_options, find_project_chain
from ckptool.config import ProjectConfig
from ckptool.reports.revisions.history import (
    HistoryReport,
    RevisionRowReport,
    build_history_report,
)
from ckptool.revisions.chain import describe_heads
from ckptool.revisions.revision import Revision


def history(
    *,
    module: str | None = None,
    chain: str | Path | None = None,
    config: ProjectConfig | None = None,
) -> HistoryReport:
    """Return the revisions of a project, the head first; no module is built.

    Args:
        module: chooses among the chains of a project with several.
        chain: folder of the revisions; None takes `ckpt_migrations` of the configuration.
        config: the configuration; None takes the nearest one from the current directory up.

    Raises:
        RevisionError: there is no chain, or it is inconsistent. Two heads are reported.
    """
    options = build_options(config, module, None, None, chain)
    revision_chain = find_project_chain(options, needs_module=False).read()
    problem = describe_heads(revision_chain) if len(revision_chain.heads) > 1 else ""
    rows = [
        _describe_revision(r, is_head=r in revision_chain.heads)
        for r in reversed(revision_chain.revisions)
    ]
    return build_history_report(str(revision_chain.folder), revision_chain.project, rows, problem)


def _describe_revision(revision: Revision, *, is_head: bool) -> RevisionRowReport:
    fixture = find_fixture(revision)
    return RevisionRowReport(
        name=revision.name,
        revision=revision.revision,
        parent=revision.parent,
        message=revision.message,
        date=revision.created.isoformat(),
        keys=len(revision.state.forms),
        steps=len(revision.plan.ops),
        python=revision.python,
        irreversible=find_irreversible_step(revision) if revision.parent else "",
        fixture=fixture.name if fixture else "",
        is_head=is_head,
    )
