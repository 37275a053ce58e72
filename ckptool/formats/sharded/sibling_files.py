"""Names in a folder -> the checkpoints that were not read, and those that loaders prefer."""

import re
from collections.abc import Collection, Sequence
from typing import Final

from ckptool.formats.files.weight_names import list_later_files
from ckptool.formats.strict_json import quote_text
from ckptool.model import Skipped
from ckptool.phrases import join_limited, quote_code

CHECKPOINT_PATTERN: Final = r"(?i).+\.(?:safetensors|bin|pth?|pt2|ckpt|pkl|pickle|tar)"
TRAINING_STATE_PATTERN: Final = (
    r"(?:optimizer|scheduler|sampler|scaler|random_states|rng_state|training_args)(?:_\d+)?\.\w+"
)
"""What Trainer and accelerate's save_state write next to weights to resume from."""
MAX_LISTED: Final = 5


def list_unread_siblings(
    names: Sequence[str], read_names: Collection[str], neighbour: str, loaded_name: str
) -> tuple[Skipped, ...]:
    """Return a Skipped for the checkpoint files among `names` that are not in `read_names`.

    It says where `loaded_name`, the file or index that was read, was chosen among them by the order
    of from_pretrained().
    """
    siblings = [
        name for name in names if name not in read_names and re.fullmatch(CHECKPOINT_PATTERN, name)
    ]
    if not siblings:
        return ()
    description = f"next to the {neighbour}: {join_limited(siblings, MAX_LISTED, quote_text)}"
    is_chosen = bool(list_later_files(loaded_name, names))
    order = f"from_pretrained() loads {quote_code(loaded_name)} first; " if is_chosen else ""
    return (Skipped(description, f"{order}give their paths to read them"),)
