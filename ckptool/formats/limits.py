"""Limits on the memory and work that a file can cause; nothing read from a file is trusted."""

from msgspec import Struct


class Limits(Struct, frozen=True):
    """Limits at which reading stops with an error, far above the needs of real checkpoints."""

    header_bytes: int = 100_000_000
    """Bytes of a safetensors header; the format's own limit."""
    metadata_bytes: int = 16 << 20
    """Characters of the `__metadata__` of a safetensors header or an index."""
    entry_bytes: int = 1 << 20
    """Characters of the entry of one tensor in JSON, or of its name."""
    tensors: int = 1_000_000
    """Keys of one JSON header or index."""
    json_depth: int = 128
    json_digits: int = 20
    """Digits of one number in JSON."""
    rank: int = 64
    """Dimensions of one tensor."""
    pickle_bytes: int = 256 << 20
    """Bytes of one pickle after inflating, and of the memory that its opcodes multiply."""
    opcodes: int = 10_000_000
    """Opcodes of one pickle."""
    memo_slots: int = 1_000_000 * 8
    """Memo slots of one pickle; 100,000 tensors take about 700,000."""
    nesting: int = 10_000
    """Nesting depth of the objects in one pickle."""
    zip_members: int = 1_000_000
    inflate_ratio: int = 200
    """Inflated bytes per compressed byte."""
    checked_bytes: int = 32 << 20
    """Bytes up to which every checksum of a container is compared; above, only with `deep`."""
    stream_bytes: int = 64 << 30
    """Bytes of a checkpoint on standard input, which is copied to a temporary file."""
    deep: bool = False
    """Compare every checksum, at any size."""
    search_remote: bool = False
    """Search the tensors of bytes of remote files for pickles, each by a request."""
    contents: bool = False
    """Fingerprint the data other than tensors: `Checkpoint.contents`."""


DEFAULT_LIMITS = Limits()
