"""The name of a package -> its version, as it is installed."""

from importlib.metadata import PackageNotFoundError, version
from typing import Final

NOT_INSTALLED: Final = "(not installed)"
"""A checkout on PYTHONPATH has no version."""


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return NOT_INSTALLED
