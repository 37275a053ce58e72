"""Names in a folder -> the file that `from_pretrained` loads, where an index is beside it.

transformers looks for the whole file first, then for the index; for safetensors first, then for
.bin. diffusers (0.42) looks for the index of safetensors first, then for the whole file, then for
the whole .bin. A variant ("fp16") has names of its own, which are looked for only where it is asked
for.
"""

import re
from collections.abc import Collection
from typing import Final

_INDEX_NAME: Final = re.compile(
    r"(?P<stem>.+)\.(?P<suffix>safetensors|bin)\.index(?P<variant>\.[\w-]+)?\.json"
)


_VARIANT_NAME: Final = re.compile(
    r"(?:model|pytorch_model|diffusion_pytorch_model)(?:"
    r"\.(?P<whole>[\w-]+?)(?:-\d{5}-of-\d{5})?\.(?:safetensors|bin)"
    r"|-\d{5}-of-\d{5}\.(?P<shard>[\w-]+)\.(?:safetensors|bin)"
    r"|\.(?:safetensors|bin)\.index\.(?P<index>[\w-]+)\.json)"
)
_INDEX_FIRST_STEM: Final = "diffusion_pytorch_model"
"""Stem of the names of diffusers."""


def name_whole_file(index_name: str) -> str:
    """Return the file that is loaded in the place of the index; "" for an index of other names.

    "model.safetensors.index.fp16.json" gives "model.fp16.safetensors".
    """
    match = _INDEX_NAME.fullmatch(index_name)
    if match is None:
        return ""
    return f"{match['stem']}{match['variant'] or ''}.{match['suffix']}"


def list_preferred_files(index_name: str, names: Collection[str]) -> list[str]:
    """Return the files of a folder that transformers and diffusers load before its index.

    transformers looks for the one file of all weights first, diffusers for the index; both for
    safetensors before pickles.
    """
    match = _INDEX_NAME.fullmatch(index_name)
    if match is None or _is_taken_first(match):
        return []
    preferred_names = [name_whole_file(index_name)]
    if match["suffix"] == "bin":
        stem = "model" if match["stem"] == "pytorch_model" else match["stem"]
        preferred_names.append(f"{stem}{match['variant'] or ''}.safetensors")
    return [name for name in preferred_names if name in names]


def find_loaded_file(index_name: str, names: Collection[str]) -> str:
    """Return the file of a folder that is loaded before its index; "" if the index is."""
    match = _INDEX_NAME.fullmatch(index_name)
    if match is None or _is_taken_first(match):
        return ""
    candidates = (
        "model.safetensors",
        f"model{match['variant'] or ''}.safetensors",
        name_whole_file(index_name),
    )
    return next((name for name in candidates if name in names), "")


def _is_taken_first(match: re.Match[str]) -> bool:
    """Whether the index is one that diffusers takes where a whole file is beside it."""
    return match["stem"] == _INDEX_FIRST_STEM and match["suffix"] == "safetensors"


def find_variant(names: Collection[str]) -> str:
    """Return the variant that all these files are of: "fp16"; "" if they are of none, or several.

    Without `variant="fp16"`, from_pretrained does not look for them.
    """
    matches = [_VARIANT_NAME.fullmatch(name) for name in names]
    variants = {
        match["whole"] or match["shard"] or match["index"] if match else "" for match in matches
    }
    return variants.pop() if len(variants) == 1 else ""
