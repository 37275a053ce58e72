"""Infer data offsets of a remote archive's members without reading their local headers."""

from itertools import pairwise
from typing import Final

from ckptool.formats.files import Source
from ckptool.formats.zips import HEADER_READ, Member

_LOCAL: Final = 30
"""Size of a local header without name and extra fields."""
_SIZES: Final = (16, 24)
"""Size of a data descriptor, 32-bit or zip64."""
_AFTER: Final = 0x0008
"""Flag of a member with a data descriptor."""
_FILLED: Final = ((4, 64), (16, 64), (24, 64), (32, 64))
"""(Extra field bytes before padding, alignment): torch pads to 64, after any zip64 field."""
_PLAIN: Final = ((0, 1), (20, 1))
"""No extra field, or a zip64 field, as zip libraries write."""
_FEW: Final = 8
_FAR: Final = 1 << 17
"""Distance in bytes beyond which two headers need separate requests."""


def prepare(source: Source, members: list[Member], end: int, *, deep: bool) -> int:
    """Infer data offsets if possible, else prefetch local headers.

    Returns the number of members whose offset was inferred: all or 0. With `deep`, always 0.
    """
    placed = 0 if deep else _assume(members, end)
    if not placed:
        # A data descriptor precedes the next header, or the directory: fetch it along.
        places = (*(member.header for member in members), end)
        source.ahead((at - max(_SIZES), max(_SIZES) + HEADER_READ) for at in places)
    return placed


def _assume(members: list[Member], end: int) -> int:
    """Set all data offsets if the gaps between members fit headers of one known padding.

    Returns the number of members set: all or 0. Few or adjacent headers are not inferred, since
    reading and comparing them is cheap.
    """
    if _is_cheap(members):
        return 0
    ends = [*(member.header for member in members[1:]), end]
    for extras in (_FILLED, _PLAIN):
        starts = [_fit(m, after, extras) for m, after in zip(members, ends, strict=True)]
        if -1 not in starts:
            for member, start in zip(members, starts, strict=True):
                member.at, member.lead = start, start - member.at
            return len(members)
    return 0


def _fit(member: Member, after: int, extras: tuple[tuple[int, int], ...]) -> int:
    """Return the data offset with which the member ends at `member_end`; -1 if not unique."""
    header = member.header + _LOCAL + len(member.raw)
    behind = _SIZES if member.flags & _AFTER else (0,)
    starts = {-(-(header + extra) // multiple) * multiple for extra, multiple in extras}
    fit = {start for start in starts for d in behind if start + member.packed + d == after}
    return fit.pop() if len(fit) == 1 else -1


def _is_cheap(members: list[Member]) -> bool:
    far = [m for before, m in pairwise(members) if m.header - before.header > _FAR]
    near = members[-1].header - members[0].header if members else 0
    return len(far) < _FEW and near - sum(m.packed for m in members if m.packed > _FAR) < _FAR
