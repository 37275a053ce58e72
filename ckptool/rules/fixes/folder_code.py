"""Checkpoint in a folder -> code and commands about the files next to it: index, shards, config."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Final

from ckptool.locations import RemotePath
from ckptool.model import Checkpoint, Container, QuantizationDeclaration
from ckptool.phrases import quote_python, quote_shell

_SHARDED: Final = frozenset({Container.SHARDED_SAFETENSORS, Container.SHARDED_TORCH})
_INDEX_SUFFIX: Final = ".index.json"
_KEYS: Final = {
    Container.SHARDED_SAFETENSORS: 'safe_open(index.parent / name, "pt").keys()',
    Container.SHARDED_TORCH: "torch.load(index.parent / name, mmap=True)",
}
"""Container -> expression of the keys in the shard `name`."""
_IMPORTS: Final = {
    Container.SHARDED_SAFETENSORS: "import json, pathlib; from safetensors import safe_open; ",
    Container.SHARDED_TORCH: "import json, pathlib, torch; ",
}


def advise_index(checkpoint: Checkpoint) -> str:
    """Return how an index and its shards agree again: in code, where the shards are files."""
    if isinstance(checkpoint.path, RemotePath):
        return "Upload the index and the shards of the same save."
    return (
        "Download the index and the shards of the same save. If the shards are right, write their "
        f"index again: {_format_index_code(checkpoint)}"
    )


def advise_download(checkpoint: Checkpoint, what: str, name: str, *options: str) -> str:
    """Return how a file in the checkpoint's folder is fetched again; of a remote one, in words.

    Args:
        checkpoint: the checkpoint.
        what: how the advice calls the file: "the missing shard".
        name: name of the file.
        options: further options of the command.
    """
    if isinstance(checkpoint.path, RemotePath):
        return f"Upload {what} again."
    folder = _find_folder(checkpoint).rstrip("/") or "."
    words = ("hf", "download", "REPOSITORY", name, "--local-dir", folder, *options)
    command = " ".join(map(quote_shell, words))
    return (
        f"Download {what} again; from the Hugging Face Hub (REPOSITORY stands for its name there): "
        f"{command}"
    )


def format_config_code(
    checkpoint: Checkpoint, declaration: QuantizationDeclaration, changes: Mapping[str, int]
) -> str:
    """Return code that corrects the section on quantisation in the configuration of the folder.

    Args:
        checkpoint: the file.
        declaration: the section, which is part of a file.
        changes: what is different in it; empty removes all of it.
    """
    path = quote_python(f"{_find_folder(checkpoint)}{declaration.file_name}")
    section = "config" + "".join(f"[{quote_python(key)}]" for key in declaration.place)
    values = ", ".join(f"{quote_python(name)}: {value}" for name, value in changes.items())
    edit = f"{section} |= {{{values}}}" if changes else f"del {section}"
    return (
        f"import json, pathlib; path = pathlib.Path({path}); "
        f"config = json.loads(path.read_text()); {edit}; "
        "path.write_text(json.dumps(config, indent=2))"
    )


def _format_index_code(checkpoint: Checkpoint) -> str:
    """Return code that writes the index of a sharded checkpoint again, from its shards."""
    keys = _KEYS[checkpoint.container]
    path = quote_python(f"{_find_folder(checkpoint)}{_name_index(checkpoint)}")
    return (
        f"{_IMPORTS[checkpoint.container]}index = pathlib.Path({path}); "
        'content = json.loads(index.read_text()); content["weight_map"] = {key: name for name in '
        f'sorted({{*content["weight_map"].values()}}) for key in {keys}}}; '
        "index.write_text(json.dumps(content, indent=2))"
    )


def _find_folder(checkpoint: Checkpoint) -> str:
    """Return the folder of the checkpoint's files with a slash at its end; "" for the current."""
    path = str(checkpoint.path)
    is_folder = checkpoint.container in _SHARDED and not path.endswith(".json")
    folder = path if is_folder else path[: len(path) - len(PurePath(path).name)]
    return f"{folder.rstrip('/')}/" if folder.strip("/") else folder


def _name_index(checkpoint: Checkpoint) -> str:
    """Return the name of the index of a sharded checkpoint."""
    name = PurePath(str(checkpoint.path)).name
    if name.endswith(_INDEX_SUFFIX):
        return name
    names = [PurePath(str(file)).name for file in checkpoint.files]
    default = (
        "model.safetensors"
        if checkpoint.container is Container.SHARDED_SAFETENSORS
        else "pytorch_model.bin"
    )
    return next((name for name in names if name.endswith(_INDEX_SUFFIX)), default + _INDEX_SUFFIX)
