"""Infer data offsets of a remote archive's members without reading their local headers."""

from itertools import pairwise
from typing import Final

from ckptool.formats.files.source import ByteSource
from ckptool.formats.zip.archive import HEADER_READ_BYTES, ZipMember

_LOCAL_HEADER_BYTES: Final = 30
"""Size of a local header without name and extra fields."""
_DESCRIPTOR_BYTES: Final = (16, 24)
"""Size of a data descriptor, 32-bit or zip64."""
_DESCRIPTOR_FLAG: Final = 0x0008
"""Flag of a member with a data descriptor."""
_TORCH_PADDINGS: Final = ((4, 64), (16, 64), (24, 64), (32, 64))
"""(Extra field bytes before padding, alignment): torch pads to 64, after any zip64 field."""
_PLAIN_PADDINGS: Final = ((0, 1), (20, 1))
"""No extra field, or a zip64 field, as zip libraries write."""
_FEW_HEADERS: Final = 8
_FAR_BYTES: Final = 1 << 17
"""Distance in bytes beyond which two headers need separate requests."""


def prefetch_headers(source: ByteSource, members: list[ZipMember], end: int, *, deep: bool) -> int:
    """Infer data offsets if possible, else prefetch local headers.

    Returns the number of members whose offset was inferred: all or 0. With `deep`, always 0.
    """
    assumed_count = 0 if deep else _infer_data_offsets(members, end)
    if not assumed_count:
        # A data descriptor precedes the next header, or the directory: fetch it along.
        offsets = (*(member.header_offset for member in members), end)
        source.prefetch(
            (offset - max(_DESCRIPTOR_BYTES), max(_DESCRIPTOR_BYTES) + HEADER_READ_BYTES)
            for offset in offsets
        )
    return assumed_count


def _infer_data_offsets(members: list[ZipMember], end: int) -> int:
    """Set all data offsets if the gaps between members fit headers of one known padding.

    Returns the number of members set: all or 0. Few or adjacent headers are not inferred, since
    reading and comparing them is cheap.
    """
    if _are_headers_cheap(members):
        return 0
    member_ends = [*(member.header_offset for member in members[1:]), end]
    for paddings in (_TORCH_PADDINGS, _PLAIN_PADDINGS):
        data_offsets = [
            _fit_data_offset(member, member_end, paddings)
            for member, member_end in zip(members, member_ends, strict=True)
        ]
        if -1 not in data_offsets:
            for member, data_offset in zip(members, data_offsets, strict=True):
                member.offset, member.header_nbytes = data_offset, data_offset - member.offset
            return len(members)
    return 0


def _fit_data_offset(
    member: ZipMember, member_end: int, paddings: tuple[tuple[int, int], ...]
) -> int:
    """Return the data offset with which the member ends at `member_end`; -1 if not unique."""
    name_end = member.header_offset + _LOCAL_HEADER_BYTES + len(member.encoded_name)
    descriptor_sizes = _DESCRIPTOR_BYTES if member.flags & _DESCRIPTOR_FLAG else (0,)
    candidates = {
        -(-(name_end + extra_nbytes) // alignment) * alignment
        for extra_nbytes, alignment in paddings
    }
    matches = {
        candidate
        for candidate in candidates
        for descriptor_nbytes in descriptor_sizes
        if candidate + member.compressed_nbytes + descriptor_nbytes == member_end
    }
    return matches.pop() if len(matches) == 1 else -1


def _are_headers_cheap(members: list[ZipMember]) -> bool:
    distant_members = [
        member
        for previous, member in pairwise(members)
        if member.header_offset - previous.header_offset > _FAR_BYTES
    ]
    headers_extent = members[-1].header_offset - members[0].header_offset if members else 0
    return (
        len(distant_members) < _FEW_HEADERS
        and headers_extent
        - sum(
            member.compressed_nbytes for member in members if member.compressed_nbytes > _FAR_BYTES
        )
        < _FAR_BYTES
    )
