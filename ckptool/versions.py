"""Package name -> installed version."""

from importlib.metadata import PackageNotFoundError, version
from typing import Final

NOT_INSTALLED: Final = "(not installed)"
"""Version of a package without metadata, such as a checkout on PYTHONPATH."""


def get_installed_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return NOT_INSTALLED
