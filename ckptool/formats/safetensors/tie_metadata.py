"""Read and write `ckptool.ties`, the metadata that names tied keys a safetensors file omits."""

import json
from collections.abc import Mapping


def parse_tie_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return tied key -> key that holds its elements, from a safetensors file's metadata.

    `safetensors.torch.save_model` writes one metadata entry per tied key; `migrate` writes all
    into the entry "ckptool.ties", as JSON. Unrelated metadata entries are in the result as well.
    """
    try:
        tie_record = json.loads(metadata.get("ckptool.ties", "{}"))
    except (ValueError, RecursionError):
        tie_record = {}
    tie_items = tie_record.items() if isinstance(tie_record, dict) else ()
    return dict(metadata) | {name: key for name, key in tie_items if isinstance(key, str)}
