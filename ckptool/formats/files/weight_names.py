"""Names in a folder -> the weights that it stands for: the file that `from_pretrained` loads.

transformers looks for the whole file first, then for the index; for safetensors first, then for
.bin. diffusers (0.42) looks for the index of safetensors first, then for the whole file, then for
the whole .bin. A variant ("fp16") has names of its own, which are looked for only where it is asked
for. None of them takes a dangling link or a folder of such a name.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from ckptool.formats.files.source import list_names
from ckptool.locations import Location
from ckptool.model import Skipped
from ckptool.phrases import quote_code

LOOKUP_ORDERS: Final[Mapping[str, tuple[str, ...]]] = {
    "transformers": (
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ),
    "diffusers": (
        "diffusion_pytorch_model.safetensors.index.json",
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.bin",
    ),
    "peft": ("adapter_model.safetensors", "adapter_model.bin"),
    "timm": ("model.safetensors", "pytorch_model.bin"),
    "open_clip": ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
}
"""Framework -> the names of weights, in the order in which it looks for them."""
_FRAMEWORKS_WITH_OWN_NAMES: Final = ("transformers", "diffusers", "peft", "open_clip")
"""Frameworks that share no name: timm takes those of transformers."""

_INDEX_NAME: Final = re.compile(
    r"(?P<stem>.+)\.(?P<suffix>safetensors|bin|pth?)\.index(?P<variant>\.[\w-]+)?\.json"
)
_VARIANT_NAME: Final = re.compile(
    r"(?:model|pytorch_model|diffusion_pytorch_model)(?:"
    r"\.(?P<whole>[\w-]+?)(?:-\d{5}-of-\d{5})?\.(?:safetensors|bin)"
    r"|-\d{5}-of-\d{5}\.(?P<shard>[\w-]+)\.(?:safetensors|bin)"
    r"|\.(?:safetensors|bin)\.index\.(?P<index>[\w-]+)\.json)"
)


def list_file_names(folder: Location) -> list[str]:
    """Return the sorted names of the files of a folder; of a remote one, all names.

    Raises:
        ReadError: it cannot be listed.
    """
    names = list_names(folder)
    if not isinstance(folder, Path):
        return names
    return [name for name in names if (folder / name).is_file()]


def describe_passed_over(
    folder: Location, names: Sequence[str], loaded_name: str
) -> tuple[Skipped, ...]:
    """Return an entry for each name that comes before `loaded_name` and is that of no file.

    A link to nothing is a file that was not fetched: something else was to be loaded.
    """
    order = _find_order(loaded_name)
    position = order.index(loaded_name) if loaded_name in order else 0
    if not isinstance(folder, Path):
        return ()
    loaded = quote_code(loaded_name)
    reasons = {
        name: "a link to a file that does not exist" if is_dangling(folder / name) else "a folder"
        for name in order[:position]
        if name in names and not (folder / name).is_file()
    }
    return tuple(
        Skipped(quote_code(name), f"it is {what}: from_pretrained() loads {loaded} in its place")
        for name, what in reasons.items()
    )


def is_dangling(path: Location) -> bool:
    """Whether a path is a symbolic link to nothing."""
    return isinstance(path, Path) and path.is_symlink() and not path.exists()


def is_index_name(name: str) -> bool:
    """Whether a file is named like the index of shards."""
    return _INDEX_NAME.fullmatch(name) is not None


def is_weights_name(name: str) -> bool:
    """Whether a file has the stem of a framework's weights, whole or a shard, in any format."""
    return not name.endswith(".json") and bool(_find_order(_cut_number(name)))


def name_whole_file(index_name: str) -> str:
    """Return the file of all weights that an index of this name divides; "" for other names.

    "model.safetensors.index.fp16.json" gives "model.fp16.safetensors".
    """
    match = _INDEX_NAME.fullmatch(index_name)
    if match is None:
        return ""
    return f"{match['stem']}{match['variant'] or ''}.{match['suffix']}"


def name_in_format(name: str, suffix: str) -> str:
    """Return the name of a framework's weights of the kind of `name`, whole or an index.

    Args:
        name: name of weights: "adapter_model.bin", "model.fp16.safetensors".
        suffix: of the files that have the tensors, ".safetensors" or ".bin".

    Returns:
        `name` itself where it has that suffix; "" if no framework has such a name.
    """
    order = _find_order(name)
    is_index = is_index_name(name)
    tensors_name = name_whole_file(name) if is_index else name
    if order and tensors_name.endswith(suffix):
        return name
    return next((n for n in order if n.endswith(suffix) and not is_index), "")


def name_index(name: str, suffix: str) -> str:
    """Return the index that the framework of `name`, a shard's too, looks for; "" if none."""
    tail = f"{suffix}.index.json"
    return next((n for n in _find_order(_cut_number(name)) if n.endswith(tail)), "")


def find_unsharded_loader(name: str, loader: str, suffix: str) -> str:
    """Return the framework that loads such weights and looks for no index of shards; "" if none.

    Args:
        name: name of weights, whole or a shard: "adapter_model.bin".
        loader: the framework that loads them; "" finds it by the name.
        suffix: of the shards, ".safetensors" or ".bin".
    """
    order = LOOKUP_ORDERS.get(loader) or _find_order(_cut_number(name))
    if not order or any(n.endswith(f"{suffix}.index.json") for n in order):
        return ""
    return next(framework for framework, names in LOOKUP_ORDERS.items() if names is order)


def choose_weights(names: Collection[str], framework: str) -> str:
    """Return the file or index that a framework loads; "" if none of its names is there.

    Where there is none without a variant, that of the only variant is taken.
    """
    order = LOOKUP_ORDERS[framework]
    variants = {variant for name in names if (variant := _find_variant_in(name, order))}
    for variant in ("", *variants) if len(variants) == 1 else ("",):
        for name in order:
            if (candidate := _add_variant(name, variant)) in names:
                return candidate
    return ""


def list_weights(names: Collection[str]) -> list[str]:
    """Return the weights that a folder without a configuration may stand for, one of each kind.

    Of each framework the file that it loads, and each index of other names, or its whole file. None
    of several variants.
    """
    choices = [choose_weights(names, framework) for framework in _FRAMEWORKS_WITH_OWN_NAMES]
    for name in sorted(names):
        if is_index_name(name) and not _find_order(name):
            whole_file = name_whole_file(name)
            choices.append(whole_file if whole_file in names else name)
    return [name for name in dict.fromkeys(choices) if name]


def list_preferred_files(index_name: str, names: Collection[str]) -> list[str]:
    """Return the whole files of a folder that are loaded in the place of an index."""
    order = _find_order(index_name) or (name_whole_file(index_name), index_name)
    variant = _find_variant_of(index_name)
    candidates = [_add_variant(name, variant) for name in order]
    position = candidates.index(index_name) if index_name in candidates else len(candidates)
    return [n for n in candidates[:position] if n in names and not is_index_name(n)]


def list_later_files(name: str, names: Collection[str]) -> list[str]:
    """Return the weights of a folder that are loaded only if `name` is not there."""
    order = _find_order(name)
    position = order.index(name) + 1 if name in order else len(order)
    return [later for later in order[position:] if later in names]


def find_variant(names: Collection[str]) -> str:
    """Return the variant that all these files are of: "fp16"; "" if they are of none, or several.

    Without `variant="fp16"`, from_pretrained does not look for them.
    """
    variants = {_find_variant_of(name) for name in names}
    return variants.pop() if len(variants) == 1 else ""


def _find_variant_of(name: str) -> str:
    match = _VARIANT_NAME.fullmatch(name)
    return (match["whole"] or match["shard"] or match["index"]) if match else ""


def _find_variant_in(name: str, order: Collection[str]) -> str:
    """Return the variant of a file whose name without it is in `order`; "" for others."""
    variant = _find_variant_of(name)
    is_named = any(_add_variant(plain_name, variant) == name for plain_name in order)
    return variant if is_named else ""


def _add_variant(name: str, variant: str) -> str:
    """Return the name of a variant: "model.fp16.safetensors"; "" adds nothing."""
    if not variant:
        return name
    head, _, suffix = name.rpartition(".")
    return f"{head}.{variant}.{suffix}"


def _find_order(name: str) -> tuple[str, ...]:
    """Return the order of the framework whose names begin like this one; () for other names."""
    for framework in _FRAMEWORKS_WITH_OWN_NAMES:
        order = LOOKUP_ORDERS[framework]
        if _cut_stem(name) in {_cut_stem(known_name) for known_name in order}:
            return order
    return ()


def _cut_number(name: str) -> str:
    """Return the stem of a file without the number of a shard."""
    return re.sub(r"-\d+-of-\d+$", "", _cut_stem(name))


def _cut_stem(name: str) -> str:
    return name.partition(".")[0]
