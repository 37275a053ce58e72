"""Elements' bytes -> what names them: the same wherever, and however, a tensor is stored."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from blake3 import blake3

FINGERPRINT: Final = "ckptool-1"
"""Name of the way in which content is digested: another way gets another name."""
PIECE: Final = 4 << 20
"""Bytes of a tensor that are hashed by themselves, so that threads can share a large one."""


def fingerprint(
    dtype: str, shape: tuple[int, ...], chunks: Iterable[bytes | bytearray | memoryview]
) -> str:
    """Return a digest of a tensor's content: the same wherever and however it is stored.

    docs/digest.md says how it is made, byte for byte.

    Args:
        dtype: torch's name without the prefix.
        shape: sizes of the dimensions.
        chunks: the elements' bytes, little-endian, in C order, cut anywhere.
    """
    return fingerprint_of(dtype, shape, piece_digests(chunks))


def hasher() -> "blake3":
    """Return the hash that names content: twice as fast as SHA-256 with the processor's help."""
    from blake3 import blake3  # only where content is looked at

    return blake3()


def fingerprint_of(dtype: str, shape: tuple[int, ...], digests: Iterable[bytes]) -> str:
    """Return the fingerprint of a tensor whose `piece_digests` are known."""
    digest = hasher()
    digest.update(f"{FINGERPRINT}\0{dtype}{list(shape)}\0".encode())
    for piece in digests:
        digest.update(piece)
    return digest.hexdigest()


def piece_digests(chunks: Iterable[bytes | bytearray | memoryview]) -> Iterator[bytes]:
    """Yield the BLAKE3 of each PIECE bytes that the chunks put together, the last one shorter."""
    digest, room = hasher(), PIECE
    for chunk in chunks:
        left = memoryview(chunk).cast("B")
        while len(left) >= room:
            digest.update(left[:room])
            yield digest.digest()
            digest, left, room = hasher(), left[room:], PIECE
        digest.update(left)
        room -= len(left)
    if room < PIECE:
        yield digest.digest()
