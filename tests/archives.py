"""Archives of the repository -> folders, with every Python that is supported."""

import tarfile
from pathlib import Path


def extract_tar(path: Path, folder: Path) -> None:
    """Extract an archive of files and folders; none of them is outside `folder`.

    Python 3.11.0 to 3.11.3 have no `filter`, and Python 3.14 refuses FIFOs without one.
    """
    root = folder.resolve()
    options = {"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}
    with tarfile.open(path) as archive:
        for member in archive:
            assert member.isreg() or member.isdir() or member.isfifo(), member.name
            assert (root / member.name).resolve().is_relative_to(root), member.name
        archive.extractall(root, **options)
