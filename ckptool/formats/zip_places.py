"""The directory of an archive far away -> where its members' bytes are, without their headers."""

from itertools import pairwise
from typing import Final

from ckptool.formats.files import Source
from ckptool.formats.zips import HEADER_READ, Member

_LOCAL: Final = 30
"""Bytes of a local header without name and extra fields."""
_SIZES: Final = (16, 24)
"""Bytes of the sizes that follow a member's data, narrow or wide."""
_AFTER: Final = 0x0008
"""The flag of a member that has them."""
_FILLED: Final = ((4, 64), (16, 64), (24, 64), (32, 64))
"""(Bytes after the name, multiple): torch fills up to 64; wide sizes or places stand before."""
_PLAIN: Final = ((0, 1), (20, 1))
"""Nothing after the name, or wide sizes, as zip libraries write it."""
_FEW: Final = 8
_FAR: Final = 1 << 17
"""Bytes between two headers that are asked for one by one."""


def prepare(source: Source, members: list[Member], end: int, *, deep: bool) -> int:
    """Fetch the headers that will be read; return how many members were placed without."""
    placed = 0 if deep else _assume(members, end)
    if not placed:
        # What follows a member's data stands before the next header, and before the directory.
        places = (*(member.header for member in members), end)
        source.ahead((at - max(_SIZES), max(_SIZES) + HEADER_READ) for at in places)
    return placed


def _assume(members: list[Member], end: int) -> int:
    """Place all members, if between them there is room for headers of one usual form and no more.

    Where there are few headers, or they lie together, they are read and compared instead.
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
    """Return where the bytes start so that the member ends at `after`; -1 where nothing fits."""
    header = member.header + _LOCAL + len(member.raw)
    behind = _SIZES if member.flags & _AFTER else (0,)
    starts = {-(-(header + extra) // multiple) * multiple for extra, multiple in extras}
    fit = {start for start in starts for d in behind if start + member.packed + d == after}
    return fit.pop() if len(fit) == 1 else -1


def _is_cheap(members: list[Member]) -> bool:
    far = [m for before, m in pairwise(members) if m.header - before.header > _FAR]
    near = members[-1].header - members[0].header if members else 0
    return len(far) < _FEW and near - sum(m.packed for m in members if m.packed > _FAR) < _FAR
