"""Bytes of elements -> content fingerprint: BLAKE3 over dtype, shape and 4 MiB pieces."""

from collections.abc import Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from blake3 import blake3

FINGERPRINT_FORMAT: Final = "ckptool-1"
"""Name and version of the fingerprint format."""
PIECE: Final = 4 << 20
"""Bytes per independently hashed piece, so that threads can share a large tensor."""


def fingerprint_chunks(
    dtype: str, shape: tuple[int, ...], chunks: Iterable[bytes | bytearray | memoryview]
) -> str:
    """Return the fingerprint of a tensor in hex, independent of container and layout.

    docs/digest.md specifies it byte for byte.

    Args:
        dtype: torch's name without the prefix.
        shape: sizes of the dimensions.
        chunks: the elements' bytes, little-endian, in C order, split at any byte.
    """
    return combine_piece_digests(dtype, shape, iter_piece_digests(chunks))


def create_hasher() -> "blake3":
    """Return a new BLAKE3 hasher: twice as fast as SHA-256 with CPU instructions."""
    return _import_hasher()()


@cache
def _import_hasher() -> "type[blake3]":
    from blake3 import blake3  # imported lazily: most commands hash nothing

    return blake3


def combine_piece_digests(dtype: str, shape: tuple[int, ...], digests: Iterable[bytes]) -> str:
    """Return the fingerprint (hex) from the digests of a tensor's pieces (`iter_piece_digests`)."""
    content_hash = create_hasher()
    content_hash.update(f"{FINGERPRINT_FORMAT}\0{dtype}{list(shape)}\0".encode())
    for piece in digests:
        content_hash.update(piece)
    return content_hash.hexdigest()


def iter_piece_digests(chunks: Iterable[bytes | bytearray | memoryview]) -> Iterator[bytes]:
    """Yield the BLAKE3 digest of each PIECE bytes of the joined chunks; the last is shorter."""
    content_hash, piece_room = create_hasher(), PIECE
    for chunk in chunks:
        remaining = memoryview(chunk).cast("B")
        if not remaining:  # blake3 before 1.0.8 refuses memory at address 0
            continue
        while len(remaining) >= piece_room:
            content_hash.update(remaining[:piece_room])
            yield content_hash.digest()
            content_hash, remaining, piece_room = create_hasher(), remaining[piece_room:], PIECE
        content_hash.update(remaining)
        piece_room -= len(remaining)
    if piece_room < PIECE:
        yield content_hash.digest()
