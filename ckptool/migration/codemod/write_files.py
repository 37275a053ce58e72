"""SourceChanges -> the project's files: atomic each, and all or none."""

import os
import stat
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from ckptool.errors import WriteError
from ckptool.formats.files.atomic import open_pending_output, translate_os_errors
from ckptool.formats.files.output_group import commit_outputs
from ckptool.migration.codemod.attribute_fault import SourceChange
from ckptool.migration.codemod.project_files import is_own_source


def write_changes(changes: Iterable[SourceChange], root: Path) -> None:
    """Write the new content of all files; modes stay, and a link stays a link.

    Raises:
        WriteError: a file was changed meanwhile, is outside the project or has several hard links,
            or cannot be written; no file is changed then.
    """
    change_list = [*changes]
    for change in change_list:
        _check_file(change, root)
    with ExitStack() as stack:
        outputs = []
        for change in change_list:
            output = stack.enter_context(open_pending_output(change.path, force=True))
            with translate_os_errors(change.path):
                output.path.write_bytes(change.new_content)
                if change.path.exists():
                    output.path.chmod(stat.S_IMODE(change.path.stat().st_mode))
            outputs.append(output)

        def check_unchanged() -> None:
            for change in change_list:
                _check_content(change)

        commit_outputs(*outputs, check=check_unchanged)


def _check_file(change: SourceChange, root: Path) -> None:
    path = change.path
    if not is_own_source(path, root):
        raise WriteError(f"{path}: not written: it is outside of the project {root}")
    _check_content(change)
    if path.exists():
        if path.stat().st_nlink > 1:
            raise WriteError(f"{path}: not written: it has several hard links")
        if not os.access(path, os.W_OK):
            raise WriteError(f"{path}: not written: it is read-only")


def _check_content(change: SourceChange) -> None:
    with translate_os_errors(change.path):
        content = change.path.read_bytes() if change.path.exists() else b""
    if content != change.old_content:
        raise WriteError(f"{change.path}: not written: it was changed in the meantime")
