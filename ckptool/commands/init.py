"""Folder of a project -> InitReport and its configuration: which module loads which checkpoint."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from ckptool.commands.sources.checkpoint_files import iter_matching_checkpoints
from ckptool.commands.sources.configured_text import format_models
from ckptool.commands.sources.module_matcher import ModelMatch, ModuleMatcher
from ckptool.commands.worker.worker import get_worker
from ckptool.config import ProjectConfig, Settings
from ckptool.errors import ReadError, UnknownFormatError, UsageError
from ckptool.loaders.folder_weights import open_weights
from ckptool.model import Checkpoint, Skipped
from ckptool.modules.target.class_search import find_modules, is_project_path
from ckptool.phrases import join_limited, pluralize
from ckptool.policy import ExitCode
from ckptool.reports.common import build_skipped_reports
from ckptool.reports.init import InitModelReport, InitReport

_MAX_CHECKPOINTS: Final = 200


def init(folder: str | Path | None = None, *, dry_run: bool = False) -> InitReport:
    """Write the configuration of a project: `[[models]]`, with the module of each checkpoint.

    Into its pyproject.toml, or a new ckptool.toml if it has none.

    Args:
        folder: the project; None is the current directory.
        dry_run: write nothing.

    Raises:
        UsageError: the project has a configuration.
        WriteError: it cannot be written.
    """
    root = Path(folder or ".")
    file = _choose_file(root)
    modules, unread_files = find_modules(root)
    worker = get_worker()
    matcher = ModuleMatcher(root, [module for module in modules if module.is_importable], worker)
    skipped = [Skipped(name, "not looked at") for name in unread_files]
    skipped += [
        Skipped(module.target, "not imported: its file runs code outside of functions and classes")
        for module in modules
        if not module.is_importable
    ]
    matches: list[ModelMatch] = []
    for name, checkpoint in _iter_checkpoints(root, skipped):
        matches.append(matcher.match_checkpoint(name, checkpoint))
    text = format_models(matches, is_pyproject=file.name == "pyproject.toml")
    content = _add_text(file, text)
    if text:
        _check_content(file, content, matches)
    if text and not dry_run:
        from ckptool.formats.files.output_group import write_file

        write_file(file, content.encode(), force=True)
    skipped += [Skipped(target, reason) for target, reason in matcher.errors.items()]
    skipped += [
        Skipped(target, f"not built: give its arguments in an entry, {_format_entry_line(names)}")
        for target, names in matcher.needed_arguments.items()
    ]
    return InitReport(
        command="init",
        findings=(),
        skipped=build_skipped_reports(skipped),
        exit_code=ExitCode.PASSED if text else ExitCode.FAILED,
        verdict=_format_verdict(
            file, text, matches, len(modules), has_built=matcher.has_built, dry_run=dry_run
        ),
        path=str(file),
        text=text,
        models=tuple(
            InitModelReport(path=match.path, module=match.target, outcome=match.outcome)
            for match in matches
        ),
        notes=(f"modules: {join_limited([module.target for module in modules], 8)}",)
        if modules
        else (),
    )


def _format_entry_line(names: tuple[str, ...]) -> str:
    return f"kwargs = {{ {', '.join(f'{name} = ...' for name in names)} }}"


def _choose_file(root: Path) -> Path:
    """Return the file to write: pyproject.toml if there is one, else ckptool.toml.

    Raises:
        UsageError: there is a configuration.
    """
    own_file, pyproject = root / "ckptool.toml", root / "pyproject.toml"
    if own_file.exists():
        raise UsageError(f"{own_file}: exists already: edit it, or remove it first")
    if not pyproject.is_file():
        return own_file
    try:
        tools = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("tool", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UsageError(f"{pyproject}: cannot be read: {error}") from error
    if isinstance(tools, dict) and "ckptool" in tools:
        raise UsageError(f"{pyproject}: has [tool.ckptool] already: edit it, or remove it first")
    return pyproject


def _iter_checkpoints(root: Path, skipped: list[Skipped]) -> Iterator[tuple[str, Checkpoint]]:
    """Yield the checkpoints of a project with their relative paths; others go to `skipped`."""
    try:
        paths = [*iter_matching_checkpoints("*", root)]
    except ReadError as error:
        skipped.append(Skipped(str(root), error.reason))
        return
    names = [path.relative_to(root).as_posix() for path in paths]
    project_names = [name for name in names if is_project_path(name)]
    if len(project_names) > _MAX_CHECKPOINTS:
        reason = f"more than {_MAX_CHECKPOINTS} checkpoints: not looked at"
        skipped.append(Skipped(f"{project_names[_MAX_CHECKPOINTS]} and what follows", reason))
    for name in project_names[:_MAX_CHECKPOINTS]:
        try:
            yield name, open_weights(root / name)
        except UnknownFormatError:
            continue
        except ReadError as error:
            skipped.append(Skipped(name, error.reason))


def _add_text(file: Path, text: str) -> str:
    """Return the content of the file with the text at its end."""
    old_text = file.read_text(encoding="utf-8") if file.is_file() else ""
    separator = "" if not old_text else "\n" if old_text.endswith("\n") else "\n\n"
    return f"{old_text}{separator}{text}"


def _check_content(file: Path, content: str, matches: list[ModelMatch]) -> None:
    """Read the configuration as commands will, and find each checkpoint's module in it.

    Raises:
        UsageError: it would not say what was found.
    """
    try:
        document = tomllib.loads(content)
        section = document["tool"]["ckptool"] if file.name == "pyproject.toml" else document
        config = ProjectConfig(msgspec.convert(section, Settings), file.parent, file)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, KeyError, TypeError) as error:
        raise UsageError(f"{file}: [[models]] cannot be added to it: {error}") from error
    for match in matches:
        entry = config.find_entry(file.parent / match.path)
        expected = match.target, match.configured_kwargs
        placed = match.target, match.take_from_place().configured_kwargs
        if match.target and (
            entry is None or (entry.module, entry.kwargs) not in (expected, placed)
        ):
            raise UsageError(f"{file}: the entry of {match.path} would be hidden by another")


def _format_verdict(
    file: Path,
    text: str,
    matches: list[ModelMatch],
    module_count: int,
    *,
    has_built: bool,
    dry_run: bool,
) -> str:
    if not module_count:
        return "nothing was written: the project has no class or factory of an nn.Module"
    if not matches:
        return "nothing was written: there is no checkpoint in the project"
    if not text and not has_built:
        return "nothing was written: no module of the project could be built"
    if not text:
        return "nothing was written: no module fits a checkpoint"
    count = sum(bool(match.target) for match in matches)
    found_text = f"{count} of {pluralize(len(matches), 'checkpoint')}"
    return f"would write {file}: {found_text}" if dry_run else f"wrote {file}: {found_text}"
