"""A project's folder and its changed files -> a folder that looks like the project after the edit.

Folders on the way to a changed file are real, everything else is a link to the project: a large
project costs as little as a small one, and what is changed is changed in the copy alone.
"""

import os
from collections.abc import Mapping
from pathlib import Path


def build_overlay(root: Path, contents: Mapping[Path, bytes], folder: Path) -> Path:
    """Fill an empty folder with the project at `root`; return its resolved path.

    Args:
        root: resolved folder of the project.
        contents: resolved path of a changed or new file in it -> its content.
        folder: an empty folder.
    """
    overlay = folder.resolve()
    files = {path.relative_to(root): content for path, content in contents.items()}
    folders = {parent for path in files for parent in path.parents}
    for relative in sorted(folders | {Path()}):
        (overlay / relative).mkdir(exist_ok=True)
        with os.scandir(root / relative) as entries:
            for entry in entries:
                path = relative / entry.name
                is_skipped = entry.name == "__pycache__" or path in folders or path in files
                if not is_skipped:
                    (overlay / path).symlink_to(_find_link_target(root, path, overlay, files))
    for path, content in files.items():
        (overlay / path).write_bytes(content)
    return overlay


def _find_link_target(root: Path, path: Path, overlay: Path, files: Mapping[Path, bytes]) -> Path:
    """Return what a link at `path` of the copy leads to: the copy of what is changed."""
    resolved = (root / path).resolve()
    if not resolved.is_relative_to(root) or resolved == root / path:
        return root / path
    inner = resolved.relative_to(root)
    is_changed = any(inner == file or inner in file.parents for file in files)
    return overlay / inner if is_changed else root / path


def move_into_overlay(path: str, root: Path, overlay: Path) -> str:
    """Return the path of a folder of the project in the overlay; any other path as it is."""
    resolved = Path(path or ".").resolve()
    return str(overlay / resolved.relative_to(root)) if resolved.is_relative_to(root) else path
