"""Descriptors of files without a name, whose spans a child process has to be able to read."""

from typing import Final

SHARED_DESCRIPTORS: Final[set[int]] = set()
"""Open descriptors; a child process inherits those that are here when it is started."""
