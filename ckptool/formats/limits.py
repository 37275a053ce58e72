"""Bounds on what a file may make ckptool do. Nothing read from a file is trusted."""

from msgspec import Struct


class Limits(Struct, frozen=True):
    """Where reading stops with an error. Every number is far above what real checkpoints need."""

    header_bytes: int = 100_000_000
    """Of a safetensors header; the format's own limit."""
    metadata_bytes: int = 16 << 20
    """Of its `__metadata__`."""
    entry_bytes: int = 1 << 20
    """Of the entry of one tensor in JSON, or of its name."""
    tensors: int = 1_000_000
    """Of one JSON header or index."""
    json_depth: int = 128
    json_digits: int = 20
    """Digits of one number in JSON."""
    rank: int = 64
    """Dimensions of one tensor."""
    pickle_bytes: int = 256 << 20
    """Of one pickle, after inflating."""
    opcodes: int = 10_000_000
    """Of one pickle."""
    memo_slots: int = 1_000_000 * 8
    """Of one pickle; 100,000 tensors take about 700,000."""
    nesting: int = 10_000
    """Of the objects in one pickle."""
    zip_members: int = 1_000_000
    inflate_ratio: int = 200
    """Inflated bytes for each compressed byte."""
    checked_bytes: int = 32 << 20
    """Containers up to this size have every checksum compared; larger ones only with `deep`."""
    stream_bytes: int = 64 << 30
    """Of a checkpoint on standard input, which is copied to a temporary file."""
    deep: bool = False
    """Compare every checksum, whatever the size."""


DEFAULT = Limits()
