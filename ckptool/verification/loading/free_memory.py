"""The memory of this machine that a trial load may take."""

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Final

_SHARE: Final = 8
"""A trial takes up to this number of copies of what it loads: file, instances, other values."""
_CGROUP: Final = Path("/sys/fs/cgroup")


def count_loadable_bytes() -> int:
    """Return the maximum size of a state, and of a module, that is loaded to ask loading code.

    An eighth of the free memory; 0 if that is not known.
    """
    counts = [count for count in (_count_available_bytes(), _count_cgroup_bytes()) if count >= 0]
    return min(counts, default=0) // _SHARE


def _count_available_bytes() -> int:
    """Return the memory that the system says is available, -1 if not known."""
    with suppress(OSError):
        if match := re.search(r"^MemAvailable:\s+(\d+) kB", _read("/proc/meminfo"), re.MULTILINE):
            return int(match[1]) << 10
    with suppress(AttributeError, ValueError, OSError):  # macOS has no free memory to ask for
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return -1


def _count_cgroup_bytes() -> int:
    """Return what the limit of a container leaves, -1 without one."""
    with suppress(OSError, ValueError):
        limit, used = int(_read(_CGROUP / "memory.max")), int(_read(_CGROUP / "memory.current"))
        match = re.search(r"^inactive_file (\d+)$", _read(_CGROUP / "memory.stat"), re.MULTILINE)
        return max(limit - used + (int(match[1]) if match else 0), 0)
    return -1


def _read(path: str | Path) -> str:
    return Path(path).read_text(encoding="ascii")
