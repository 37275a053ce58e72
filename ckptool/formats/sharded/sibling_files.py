"""Names in a folder -> the checkpoints that were not read, and those that loaders prefer."""

import re
from collections.abc import Collection, Sequence
from typing import Final

from ckptool.formats.strict_json import quote_text
from ckptool.model import Skipped
from ckptool.phrases import join_limited

CHECKPOINT_PATTERN: Final = r"(?i).+\.(?:safetensors|bin|pth?|pt2|ckpt|pkl|pickle|tar)"
MAX_LISTED: Final = 5


def list_unread_siblings(
    names: Sequence[str], read_names: Collection[str], neighbour: str
) -> tuple[Skipped, ...]:
    """Return a Skipped for the checkpoint files among `names` that are not in `read_names`."""
    siblings = [
        name for name in names if name not in read_names and re.fullmatch(CHECKPOINT_PATTERN, name)
    ]
    if not siblings:
        return ()
    description = f"next to the {neighbour}: {join_limited(siblings, MAX_LISTED, quote_text)}"
    return (Skipped(description, "give their paths to read them"),)
