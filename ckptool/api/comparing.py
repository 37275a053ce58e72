"""Two checkpoint files -> DiffFilesReport: with threads, Dask, an executor, or in shards."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from ckptool import report
from ckptool.api.drawing import draw_revision
from ckptool.api.refusing import refuse_negative
from ckptool.api.target import PathLike, opened
from ckptool.cluster import cluster
from ckptool.compare import Revision
from ckptool.errors import UsageError
from ckptool.formats.limits import Limits
from ckptool.parts import Part, from_data, merged, part_of, share, to_data
from ckptool.policy import Policy, judge
from ckptool.reporting.revising import partial, revised
from ckptool.revising import answer, outline, questions, revise
from ckptool.rules import run
from ckptool.statistics import Tolerances
from ckptool.workers import JOBS, Workers

if TYPE_CHECKING:
    from concurrent.futures import Executor


class How(Struct, frozen=True):
    """Options for comparing the values of two files: tolerances and where to run; see `diff`."""

    values: bool = True
    rtol: float | None = None
    atol: float | None = None
    jobs: int | None = None
    dask: str | None = None
    executor: "Executor | None" = None
    shard: tuple[int, int] | None = None
    progress: Callable[[int], None] | None = None

    def __post_init__(self) -> None:
        """Validate the options.

        Raises:
            UsageError: an option is out of bounds, or two options exclude each other.
        """
        refuse_negative({"--rtol": self.rtol, "--atol": self.atol})
        if self.jobs is not None and self.jobs < 1:
            raise UsageError(f"--jobs {self.jobs}: expected 1 or more")
        if self.shard is not None and not 1 <= self.shard[0] <= self.shard[1]:
            part, parts = self.shard
            raise UsageError(f"--shard {part}/{parts}: expected I/N with I from 1 to N")
        if not self.values and self.of_values():
            raise UsageError(f"--no-values leaves nothing to do for {self.of_values()}")
        if self.dask is not None and self.jobs is not None:
            raise UsageError("--jobs is for threads of this machine, --dask has its own: give one")

    def of_values(self) -> str:
        """Return the first option set that only applies to values of two files, "" if none."""
        for name in ("rtol", "atol", "jobs", "dask", "shard"):
            if getattr(self, name) is not None:
                return f"--{name}"
        return "" if self.executor is None else "executor"

    @property
    def tolerances(self) -> Tolerances | None:
        if self.rtol is None and self.atol is None:
            return None
        return Tolerances(self.rtol or 0.0, self.atol or 0.0)

    @contextmanager
    def workers(self) -> Iterator[Workers]:
        if self.dask is not None:
            with cluster(self.dask, self.progress) as workers:
                yield workers
        elif self.executor is not None:
            yield Workers(executor=self.executor, folder=Path.cwd(), progress=self.progress)
        else:
            yield Workers(self.jobs or JOBS, progress=self.progress)


def diff_files(
    old: PathLike,
    new: PathLike,
    how: How,
    *,
    at: str | None,
    explain: str | None,
    policy: Policy,
    limits: Limits,
    pictures: bool = False,
) -> report.DiffFilesReport | report.PartReport:
    """Compare two files, or only the shard of their values that `options.shard` selects."""
    known = outline(opened(old, limits), opened(new, limits), at)
    if not how.values:
        return _judged(revise(known, None, None), policy, explain, pictures=pictures)
    number, of = how.shard or (1, 1)
    asked = share(known, number, of) if how.shard else questions(known)
    with how.workers() as workers:
        learnt = answer(known, asked, how.tolerances or Tolerances(), workers)
    if how.shard is None:
        return _judged(revise(known, learnt, how.tolerances), policy, explain, pictures=pictures)
    part = part_of(known, number, of, how.tolerances, learnt)
    return partial(part, len(asked), to_data(part))


def merge(
    parts: str | Path | Sequence[str | Path],
    *,
    explain: str | None = None,
    policy: Policy | None = None,
) -> report.DiffFilesReport:
    """Merge the shards of a comparison; the report equals that of a single complete run.

    Args:
        parts: the JSON files that `diff` with `shard` wrote; all of them, in any order.
        explain: a key to explain in full.
        policy: reported findings, and the level from which they fail.

    Raises:
        UsageError: a file is not a shard, or a shard is missing, duplicated or of other files.
    """
    paths = [parts] if isinstance(parts, str | Path) else list(parts)
    if not paths:
        raise UsageError("no parts to put together: name the files that `diff --shard` wrote")
    read = {str(path): _read(Path(path)) for path in paths}
    if len(read) < len(paths):
        raise UsageError("a part is named twice")
    return _judged(merged(read), policy or Policy(), explain)


def _judged(
    revision: Revision, policy: Policy, explain: str | None, *, pictures: bool = False
) -> report.DiffFilesReport:
    found = judge(run([revision], revision.new.path), policy, differs=revision.differs)
    said = revised(revision, found, explain)
    return draw_revision(said, revision) if pictures else said


def _read(path: Path) -> Part:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    try:
        data = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UsageError(f"{path}: is no JSON: {error}") from error
    evidence = data.get("evidence") if isinstance(data, dict) else None
    return from_data(str(path), evidence)
