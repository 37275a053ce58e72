"""Checkpoint -> the fixture of the revision that it is at, in a chain that stays as it is."""

from pathlib import Path

from ckptool.commands.revisions.fixtures import OutputRecorder, list_fixture_files, take_fixture
from ckptool.commands.revisions.revision_files import write_chain_files
from ckptool.commands.target import ModuleTarget
from ckptool.commands.worker.worker import get_worker
from ckptool.formats.limits import Limits
from ckptool.reports.revisions.revision import (
    RevisionOutcome,
    RevisionReport,
    build_revision_report,
)
from ckptool.revisions.chain import Chain


def keep_fixture(
    chain: Chain,
    target: ModuleTarget,
    path: Path,
    inputs: object,
    limits: Limits,
    *,
    dry_run: bool,
) -> RevisionReport:
    """Copy a file into the chain; one at the head with the outputs that today's module gives.

    Raises:
        ReadError: it cannot be read, or is large.
        RevisionError: it is at no revision, or at one that has a fixture; or there are two heads.
    """
    head = chain.head
    fixture = take_fixture(path, chain, head, OutputRecorder(target, inputs, get_worker()), limits)
    files = list_fixture_files(fixture)
    if not dry_run:
        write_chain_files(chain.folder, [head.revision], files)
    notes = (fixture.origin,)
    return build_revision_report(RevisionOutcome((), files, notes=notes, is_written=not dry_run))
