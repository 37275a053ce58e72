"""PendingFile: a file that is complete and has no name yet."""

from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct


class PendingFile(Struct, frozen=True):
    """A complete file at a temporary path, before it is renamed to its target."""

    path: Path
    target: Path
    is_safetensors: bool
    at: str
    """Path of the state_dict in the file; "" for the root."""
    ties: Mapping[str, str]
    """Omitted tied keys -> the key that is stored."""
    load_obstacles: str = ""
    """Text of known obstacles to strict loading; "" for none."""
    keys_to_confirm: tuple[str, ...] = ()
    """Keys of the module whose renames the outputs of the old module have to confirm."""
