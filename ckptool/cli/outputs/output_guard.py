"""Options of a command -> UsageError where an output would replace what the command reads.

Outputs are the options of type `OUTPUT_PATH`; every other value that names a file is an input. A
new option is therefore guarded without being named here.
"""

import os
import re
import stat
from collections.abc import Iterable, Iterator
from glob import iglob
from itertools import islice
from pathlib import Path
from typing import Final

from msgspec import Struct

from ckptool.config import ProjectConfig
from ckptool.errors import UsageError, describe_os_error

_MAX_LISTED_FILES: Final = 10_000
"""Files of a folder or of a pattern that are looked at."""
_HEAD_BYTES: Final = 4096
_SOURCE_SUFFIX: Final = ".py"
_TAIL_BYTES: Final = 200
_REPORT_HEADS: Final = (
    re.compile(rb'\{\s*"command": "\w+"'),
    re.compile(rb'\{\s*"\$schema": "[^"]*sarif[^"]*".*"name": "ckptool"', re.DOTALL),
    re.compile(rb'\[\]\s*\Z|\[\s*\{\s*"description".*"check_name": "CK[0-9]{3}', re.DOTALL),
    re.compile(rb'<\?xml[^>]*>\s*<testsuites name="ckptool"'),
    re.compile(rb"(?i)\s*<!doctype html>.*<title>ckptool \w+: ", re.DOTALL),
)
"""How the reports of the machine formats and of html begin."""
TEXT_MARK: Final = "written by ckptool"
"""In the last line of a table or of Markdown in a file, which are recognised by it."""


FileId = tuple[int, int]
"""Device and inode."""
InputFile = tuple[Path, bool]
"""A file, and whether it is named; else it is in a folder, or matches a pattern."""


class OutputOption(Struct, frozen=True):
    """An output of a command: the option that names it, and its path."""

    option: str
    path: Path
    is_source: bool = False
    """Whether Python source is written to it: anything else never replaces a `.py` file."""


def check_outputs(
    outputs: Iterable[OutputOption], inputs: Iterable[object], config: ProjectConfig
) -> None:
    """Raise UsageError if an output is an input or another output, by any name, or holds one.

    Links and hard links are followed; with a folder, an index or a pattern, all files that belong
    to it are inputs; so are the source files of modules, the configuration and what it names.
    """
    output_list = list(outputs)
    if not output_list:
        return
    named_ids, listed_ids = _map_inputs(inputs, config)
    input_ids = listed_ids | named_ids
    input_folders = {folder for path in input_ids.values() for folder in path.resolve().parents}
    seen_ids: dict[FileId, OutputOption] = {}
    for output in output_list:
        file_id = _read_file_id(output.path)
        if file_id is None:
            continue
        if not output.is_source and output.path.resolve().suffix == _SOURCE_SUFFIX:
            raise UsageError(
                f"{output.option} {output.path}: is Python source and would be overwritten: choose "
                "another file"
            )
        if file_id in input_ids and (file_id in named_ids or not _is_own_report(output.path)):
            raise UsageError(
                f"{output.option} {output.path}: is an input of this command and would be "
                f"overwritten ({input_ids[file_id]})"
            )
        if output.path.is_dir() and output.path.resolve() in input_folders:
            raise UsageError(
                f"{output.option} {output.path}: contains an input of this command and would be "
                "overwritten"
            )
        if file_id in seen_ids:
            raise UsageError(
                f"{output.option} {output.path}: is also the file of {seen_ids[file_id].option}: "
                "choose another"
            )
        seen_ids[file_id] = output


def check_replaced_report(path: Path) -> None:
    """Raise UsageError if `path` is a file that is no report of ckptool, and not empty."""
    if not _is_own_report(path):
        raise UsageError(
            f"-o {path}: already exists and is not a ckptool report: choose another file, or "
            "replace it with --force"
        )


def _is_own_report(path: Path) -> bool:
    """Whether `path` is no regular file, is empty, or is a report of ckptool by its content."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or not status.st_size:
            return True
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
            file.seek(max(0, status.st_size - _TAIL_BYTES))
            tail = file.read(_TAIL_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError as error:
        raise UsageError(f"-o {path}: {describe_os_error(error)}") from error
    return TEXT_MARK.encode() in tail or any(pattern.match(head) for pattern in _REPORT_HEADS)


def _map_inputs(
    values: Iterable[object], config: ProjectConfig
) -> tuple[dict[FileId, Path], dict[FileId, Path]]:
    """Return the inputs that are named, and those that are found in a folder or by a pattern."""
    named_ids: dict[FileId, Path] = {}
    listed_ids: dict[FileId, Path] = {}
    for path, is_named in _iter_input_files(values, config):
        file_id = _read_file_id(path)
        if file_id is not None:
            (named_ids if is_named else listed_ids).setdefault(file_id, path)
    return named_ids, listed_ids


def _read_file_id(path: Path) -> FileId | None:
    """Return device and inode of what `path` leads to; None if it cannot be examined."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _iter_input_files(values: Iterable[object], config: ProjectConfig) -> Iterator[InputFile]:
    for value in values:
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, Path):
                yield from _iter_files_of(item)
            elif isinstance(item, str):
                yield from _iter_named_files(item, Path())
    if config.file is not None:
        yield config.file, True
    for entry in config.settings.models:
        names = (entry.against or "", *entry.fixtures, *entry.plans, *entry.golden, *entry.inputs)
        for name in (entry.module, *names):
            yield from _iter_named_files(name, config.directory)


def _iter_named_files(text: str, folder: Path) -> Iterator[InputFile]:
    """Yield the files that an option's text names: `PATH`, `KEY=file:PATH#KEY`, a pattern."""
    words = {text, text.partition("=")[2]}
    words |= {re.sub(r"^(?:file|npz):", "", word).rpartition("#")[0] for word in list(words)}
    for word in sorted(words - {""}):
        if any(character in word for character in "*?["):
            pattern = os.path.join(folder, word)  # noqa: PTH118 - an absolute pattern stays one
            matches = islice(iglob(pattern, recursive=True), _MAX_LISTED_FILES)  # noqa: PTH207
            yield from ((Path(match), False) for match in matches)
        yield from _iter_files_of(folder / word)
        source = _find_module_file(word.partition(":")[0], folder)
        if source is not None:
            yield source, True


def _find_module_file(text: str, folder: Path) -> Path | None:
    """Return the source file of a module that `text` names: "package.module", "net.py"."""
    if text.endswith(_SOURCE_SUFFIX):
        return folder / text
    if not all(part.isidentifier() for part in text.split(".")):
        return None
    from ckptool.formats.pickle.module_source import find_module_source

    source = find_module_source(text, (folder, Path()))
    return source if isinstance(source, Path) else None


def _iter_files_of(path: Path) -> Iterator[InputFile]:
    """Yield `path` and the files that belong to it: those below a folder, and beside an index."""
    yield path, True
    try:
        if path.is_dir():
            yield from islice(_iter_files_below(path), _MAX_LISTED_FILES)
        elif ".index." in path.name or path.name == ".metadata":
            with os.scandir(path.parent) as entries:
                names = islice(entries, _MAX_LISTED_FILES)
                yield from ((Path(entry.path), False) for entry in names)
    except (OSError, ValueError):
        return


def _iter_files_below(folder: Path) -> Iterator[InputFile]:
    for place, _, names in os.walk(folder):
        yield from ((Path(place, name), False) for name in names)
