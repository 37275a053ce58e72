"""A training command -> ResumeComparison: interrupted and resumed, against one run without."""

import os
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from ckptool.errors import UsageError
from ckptool.phrases import truncate
from ckptool.tracing.records import LoadRecord, SavedStateRecord, SaveRecord
from ckptool.tracing.resume_comparison import ResumeComparison, ResumedSave
from ckptool.tracing.traced_command import TracedRun, run_traced

_MAX_FOLDER_BYTES: Final = 1 << 30
_IGNORED_NAMES: Final = (".git", ".hg", "__pycache__", ".venv", "venv", "node_modules", ".tox")
_MAX_LINE_CHARS: Final = 200


class ResumeCheck(Struct, frozen=True):
    """The first uninterrupted run, and the comparison."""

    run: TracedRun
    comparison: ResumeComparison


def check_resume(words: Sequence[str], resume_words: str) -> ResumeCheck:
    """Run a command twice, then up to its first checkpoint, then resume it, and compare.

    Every run has its own copy of the current folder, so that none finds files of another.

    Args:
        words: the command.
        resume_words: what is added to it to resume, as in a shell; `{checkpoint}` is the first file
            with the state of a module, `{folder}` its folder. "": the command resumes by itself.

    Raises:
        UsageError: the folder is too large to be copied, or the command cannot be started.
    """
    _check_folder_size(Path.cwd())
    with tempfile.TemporaryDirectory(prefix="ckptool-resume-") as name:
        folders = [Path(name).resolve() / run for run in ("first", "second", "resumed")]
        for folder in folders:
            _copy_folder(folder)
        first = _run(words, folders[0], "record", is_shown=True)
        comparison = ResumeComparison(f"the command ended with exit code {first.exit_code}")
        if first.exit_code == 0:
            comparison = _compare_runs(words, resume_words, folders, first)
        return ResumeCheck(_name_from_folder(first, folders[0]), comparison)


def _copy_folder(target: Path) -> None:
    """Copy the current folder without pipes and sockets, which have no content.

    Raises:
        UsageError: a file of it cannot be read.
    """

    def list_ignored(folder: str, names: list[str]) -> set[str]:
        paths = [Path(folder, name) for name in names]
        special = {p.name for p in paths if not (p.is_symlink() or p.is_file() or p.is_dir())}
        return special | ignore_names(folder, names)

    ignore_names = shutil.ignore_patterns(*_IGNORED_NAMES)
    try:
        shutil.copytree(Path.cwd(), target, symlinks=True, ignore=list_ignored)
    except shutil.Error as error:
        path, _, reason = error.args[0][0]
        text = f"{path}: cannot be copied for --resume-check: {str(reason).partition('] ')[2]}"
        raise UsageError(text) from error


def _run(words: Sequence[str], folder: Path, mode: str, *, is_shown: bool = False) -> TracedRun:
    settings = {"CKPTOOL_TRACE_STATES": mode, "PWD": str(folder)}
    return run_traced(words, folder=folder, settings=settings, is_shown=is_shown)


def _name_from_folder(run: TracedRun, folder: Path) -> TracedRun:
    """Return a run with the paths in its copy of the folder relative to it."""
    prefix = f"{folder}/"
    records = tuple(
        replace(record, file=record.file.removeprefix(prefix))
        if isinstance(record, LoadRecord | SaveRecord)
        else record
        for record in run.records
    )
    return replace(run, records=records)


def _compare_runs(
    words: Sequence[str], resume_words: str, folders: Sequence[Path], first: TracedRun
) -> ResumeComparison:
    """Run the command again: whole, interrupted after its first checkpoint, and resumed from it.

    `folders` are copies of the current folder, the first that of the run that is done.
    """
    second = _run(words, folders[1], "record")
    stopped = _run(words, folders[2], "stop")
    saves = _list_saves(stopped, folders[2])[0]
    checkpoint = next((save.file for save in saves if save.has_model), "")
    if not checkpoint:
        return ResumeComparison("no save has the state of a module")
    if len(saves) >= len(_list_saves(first, folders[0])[0]):
        return ResumeComparison(
            f"nothing is saved after the first checkpoint ({checkpoint}): train for longer, or "
            "save more often"
        )
    added = [
        word.replace("{checkpoint}", checkpoint).replace("{folder}", str(Path(checkpoint).parent))
        for word in shlex.split(resume_words)
    ]
    resumed = _run([*words, *added], folders[2], "record")
    if resumed.exit_code:
        return ResumeComparison(
            f"the resumed run ended with exit code {resumed.exit_code}"
            f"{_quote_last_line(resumed.error_text)}",
            checkpoint,
        )
    return _compare_saves(
        checkpoint,
        saves,
        _list_saves(first, folders[0]),
        _list_saves(second, folders[1]),
        _list_saves(resumed, folders[2]),
    )


_RankSaves: TypeAlias = Mapping[int, Sequence[SavedStateRecord]]
"""Rank -> what it saved; [] for a rank that saved nothing."""


def _list_saves(run: TracedRun, folder: Path) -> _RankSaves:
    """Return the saves of each rank, with paths relative to the folder of the run."""
    saves: dict[int, list[SavedStateRecord]] = {0: []}
    for record in run.records:
        rank_saves = saves.setdefault(record.rank, [])
        if isinstance(record, SavedStateRecord) and record.step_count:
            rank_saves.append(replace(record, file=record.file.removeprefix(f"{folder}/")))
    return saves


def _compare_saves(
    checkpoint: str,
    stopped: Sequence[SavedStateRecord],
    first: _RankSaves,
    second: _RankSaves,
    resumed: _RankSaves,
) -> ResumeComparison:
    """Compare the first save of the resumed run with that of the same name and turn."""
    for save in resumed[0]:
        turn = sum(other.file == save.file for other in stopped)
        counterparts = [
            [other for other in saves[0] if other.file == save.file] for saves in (first, second)
        ]
        if save.has_model and all(len(saves) > turn for saves in counterparts):
            whole, repeated = (saves[turn] for saves in counterparts)
            result = _compare_states(whole, repeated, save)
            unchecked: list[int] = []
            for rank in sorted(first.keys() - {0}):
                triples = _match_states(
                    (first[rank], whole.step_count),
                    (second.get(rank, ()), repeated.step_count),
                    (resumed.get(rank, ()), save.step_count),
                )
                unchecked += [] if triples else [rank]
                for triple in triples:
                    result = _add_rank(result, rank, _compare_states(*triple))
            return ResumeComparison("", checkpoint, result, tuple(unchecked))
    return ResumeComparison(
        "the resumed run saved nothing that the uninterrupted run saved after the checkpoint: "
        "their files have other names",
        checkpoint,
    )


def _match_states(
    *runs: tuple[Sequence[SavedStateRecord], int],
) -> list[tuple[SavedStateRecord, SavedStateRecord, SavedStateRecord]]:
    """Return what one rank had after so many steps in each run: the same file, or none."""
    whole, repeated, resumed = (
        {save.file: save for save in saves if save.step_count == step_count}
        for saves, step_count in runs
    )
    return [
        (save, repeated[file], resumed[file])
        for file, save in whole.items()
        if file in repeated and file in resumed
    ]


def _add_rank(result: ResumedSave, rank: int, other: ResumedSave) -> ResumedSave:
    """Return the differences together with those of a rank that is not 0."""

    def name_saved(name: str) -> str:
        return f"{name} of {other.file} on rank {rank}"

    return ResumedSave(
        result.file,
        (*result.saved_differences, *map(name_saved, other.saved_differences)),
        (
            *result.live_differences,
            *((f"{name} on rank {rank}", old, new) for name, old, new in other.live_differences),
        ),
        result.saved_count + other.saved_count,
        (*result.random_names, *map(name_saved, other.random_names)),
    )


def _compare_states(
    whole: SavedStateRecord, repeated: SavedStateRecord, resumed: SavedStateRecord
) -> ResumedSave:
    random_names = {name for name in whole.saved if repeated.saved.get(name) != whole.saved[name]}
    return ResumedSave(
        whole.file,
        tuple(
            name
            for name, digest in whole.saved.items()
            if name not in random_names and resumed.saved.get(name) != digest
        ),
        tuple(
            (name, value, resumed.live[name])
            for name, value in whole.live.items()
            if repeated.live.get(name) == value and resumed.live.get(name, value) != value
        ),
        len(whole.saved),
        tuple(sorted(random_names)),
    )


def _check_folder_size(folder: Path) -> None:
    total = 0
    for path in _iter_files(folder):
        total += path.lstat().st_size
        if total > _MAX_FOLDER_BYTES:
            raise UsageError(
                "--resume-check runs the command in three copies of the current folder, which has "
                f"more than {_MAX_FOLDER_BYTES:,} bytes: run it in a smaller one"
            )


def _iter_files(folder: Path) -> Iterable[Path]:
    for parent, folder_names, names in os.walk(folder):
        folder_names[:] = [name for name in folder_names if name not in _IGNORED_NAMES]
        yield from (Path(parent, name) for name in names)


def _quote_last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f": {truncate(lines[-1], _MAX_LINE_CHARS)}" if lines else ""
