"""Read and write `ckptool.ties`, the metadata that names tied keys a safetensors file omits."""

import json
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Final

from ckptool.errors import CorruptCheckpointError
from ckptool.formats.limits import DEFAULT_LIMITS
from ckptool.formats.strict_json import decode_object

TIES_KEY: Final = "ckptool.ties"
"""Key in `__metadata__` of the mapping from omitted tied keys to the key that is stored."""


def parse_ties(metadata: Mapping[str, str], stored_keys: Container[str]) -> dict[str, str]:
    """Return tied key -> stored key, from the record that `migrate` writes.

    Whoever made the file wrote the record, so it is not trusted: a record that is not a JSON
    object, and entries that do not name one of `stored_keys`, are ignored.
    """
    text = metadata.get(TIES_KEY, "{}").encode(errors="surrogatepass")
    try:
        ties, trailing_text = decode_object(Path(), text, DEFAULT_LIMITS, TIES_KEY)
    except CorruptCheckpointError:
        return {}
    return {} if trailing_text.strip() else _keep_stored(ties, stored_keys)


def parse_declared_ties(metadata: Mapping[str, str], stored_keys: Container[str]) -> dict[str, str]:
    """Return tied key -> stored key, from all that the metadata declares.

    That is the record of `migrate`, and the entries of `safetensors.torch.save_model`, which
    writes one metadata entry per tied key; its "format" entry is none of them.
    """
    entries = {name: key for name, key in metadata.items() if name != "format"}
    return _keep_stored(entries, stored_keys) | parse_ties(metadata, stored_keys)


def format_ties(ties: Mapping[str, str]) -> str:
    """Return the tie record as JSON, the form stored in the metadata."""
    return json.dumps(dict(ties))


def _keep_stored(ties: Mapping[str, object], stored_keys: Container[str]) -> dict[str, str]:
    return {name: key for name, key in ties.items() if isinstance(key, str) and key in stored_keys}
