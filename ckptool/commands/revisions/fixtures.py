"""Fixture of a revision: a small file that was saved at it, and the outputs that it gave then."""

import tempfile
from pathlib import Path
from typing import Final

from msgspec import Struct

from ckptool.commands.sources.checkpoint_paths import open_checkpoint_or_stdin
from ckptool.commands.target import ModuleTarget
from ckptool.commands.worker.requests import RecordGolden
from ckptool.commands.worker.revision_requests import SaveBuiltState
from ckptool.commands.worker.worker import ModuleWorker
from ckptool.errors import ModuleError, ReadError, RevisionError, UsageError
from ckptool.formats import open_checkpoint
from ckptool.formats.limits import DEFAULT_LIMITS, Limits
from ckptool.model import all_tensors
from ckptool.revisions.chain import Chain
from ckptool.revisions.current_revision import find_current_revision
from ckptool.revisions.revision import Revision

FIXTURES_FOLDER: Final = "fixtures"
GOLDEN_SUFFIX: Final = ".golden.safetensors"
MAX_BUILT_NBYTES: Final = 4 << 20
"""Bytes of a state up to which its fixture is made without being asked for."""
MAX_FIXTURE_NBYTES: Final = 64 << 20
"""Bytes of a file that is copied into a repository."""


class NewFixture(Struct, frozen=True):
    """A fixture that a new revision brings with it."""

    revision: Revision
    content: bytes
    suffix: str
    golden: bytes = b""
    """Recorded outputs, b"" without them."""
    origin: str = ""
    """Where the file is from, and why it has no outputs, as a sentence."""


class OutputRecorder(Struct, frozen=True):
    """Today's module, and what it is run with, to record its outputs with a fixture."""

    target: ModuleTarget
    inputs: object
    """Arguments of forward; None takes those of the configuration."""
    worker: ModuleWorker

    def record_outputs(self, path: Path) -> tuple[bytes, str]:
        """Return the golden file of the module with a fixture, or b"" and why there is none."""
        checkpoint = open_checkpoint(path, DEFAULT_LIMITS)
        try:
            recording = self.worker.ask(RecordGolden(self.target, checkpoint, self.inputs, {}))
        except (UsageError, ModuleError) as error:
            return b"", f"its outputs are not recorded: {error}"
        return recording.content, ""


def find_fixture(revision: Revision) -> Path | None:
    """Return the fixture of a revision, or None."""
    folder = revision.path.parent / FIXTURES_FOLDER
    if not folder.is_dir():
        return None
    paths = sorted(
        path
        for path in folder.iterdir()
        if path.stem == revision.name and not path.name.endswith(GOLDEN_SUFFIX)
    )
    return paths[0] if paths else None


def find_golden(revision: Revision) -> Path | None:
    """Return the recorded outputs of the fixture of a revision, or None."""
    path = revision.path.parent / FIXTURES_FOLDER / f"{revision.name}{GOLDEN_SUFFIX}"
    return path if path.is_file() else None


def list_fixture_paths(revision: Revision) -> list[Path]:
    """Return the fixture of a revision and its recorded outputs, as far as they exist."""
    paths = (find_fixture(revision), find_golden(revision))
    return [path for path in paths if path is not None]


def take_fixture(
    path: Path,
    chain: Chain,
    new: Revision,
    recorder: OutputRecorder,
    limits: Limits,
) -> NewFixture:
    """Return a file that the user gives, as the fixture of the revision that it is at.

    Raises:
        ReadError: it cannot be read, or is large.
        RevisionError: it is at no revision, or at one that has a fixture.
    """
    checkpoint = open_checkpoint_or_stdin(path, limits)
    if path.is_dir() or checkpoint.nbytes > MAX_FIXTURE_NBYTES:
        raise ReadError(
            path, f"is a folder, or larger than a fixture may be ({MAX_FIXTURE_NBYTES >> 20} MiB)"
        )
    current_revision = find_current_revision(checkpoint, chain)
    revision = current_revision.revision
    if new in current_revision.candidates:
        revision = new
    if revision is None or not current_revision.is_known:
        raise RevisionError(f"{path}: {current_revision.text}")
    if find_fixture(revision) is not None:
        raise RevisionError(f"{path}: is at {revision.name}, which has a fixture already")
    origin = f"{path.name} is the fixture of {revision.name}"
    if revision != new:
        return NewFixture(revision, path.read_bytes(), path.suffix, origin=origin)
    golden, reason = recorder.record_outputs(path)
    return NewFixture(new, path.read_bytes(), path.suffix, golden, _join(origin, reason))


def build_fixture(new: Revision, recorder: OutputRecorder) -> NewFixture | str:
    """Return a fixture with the values of today's constructor, or why there is none."""
    with tempfile.TemporaryDirectory(prefix="ckptool-fixture-") as folder:
        path = Path(folder, f"{new.name}.pth")
        try:
            recorder.worker.ask(SaveBuiltState(recorder.target, path, MAX_BUILT_NBYTES))
            tensors = all_tensors(open_checkpoint(path, DEFAULT_LIMITS))
        except (UsageError, ModuleError, ReadError) as error:
            return f"no fixture of {new.name}: {error}"
        if not tensors:
            return f"no fixture of {new.name}: the state has no tensors"
        golden, reason = recorder.record_outputs(path)
        origin = f"the fixture of {new.name} has the values of the constructor"
        return NewFixture(new, path.read_bytes(), path.suffix, golden, _join(origin, reason))


def list_fixture_files(fixture: NewFixture) -> dict[Path, bytes]:
    """Return the files of a fixture with their content."""
    stem = fixture.revision.path.parent / FIXTURES_FOLDER / fixture.revision.name
    files = {stem.with_name(stem.name + fixture.suffix): fixture.content}
    if fixture.golden:
        files[stem.with_name(stem.name + GOLDEN_SUFFIX)] = fixture.golden
    return files


def _join(origin: str, reason: str) -> str:
    return f"{origin}; {reason}" if reason else origin
