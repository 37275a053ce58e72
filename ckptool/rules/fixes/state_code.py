"""Keys and places of a checkpoint -> Python code of fixes that changes exactly them."""

import re
from collections.abc import Collection
from itertools import islice
from typing import Final

from ckptool.model import Checkpoint, Container
from ckptool.phrases import quote_python

_SHARDED: Final = frozenset({Container.SHARDED_SAFETENSORS, Container.SHARDED_TORCH})
_MAX_STATEMENTS: Final = 4
"""Maximum assignments that one fix lists."""
FULL_STATE_DICT: Final = (
    "from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict; "
    "state_dict = get_model_state_dict(model, "
    "options=StateDictOptions(full_state_dict=True, cpu_offload=True))"
)
"""Code for all ranks: the keys and shapes of the module, however its parameters are sharded."""


def format_place(at: str) -> str:
    """Return the expression for a place of a loaded file: `checkpoint["model"]`."""
    return "checkpoint" + "".join(f"[{quote_python(step)}]" for step in at.split(".") if step)


def format_save_code(checkpoint: Checkpoint, at: str, state: str = "model.state_dict()") -> str:
    """Return the statements with which a script saves a state again, in its place of the file.

    Args:
        checkpoint: the file that is written again.
        at: dotted place of the state in it, "" for the root.
        state: expression of the state_dict.
    """
    path = quote_python(str(checkpoint.path))
    if checkpoint.container in _SHARDED:
        return f"model.save_pretrained({path})"
    if checkpoint.container is Container.SAFETENSORS:
        return f"from safetensors.torch import save_file; save_file({state}, {path})"
    if not at:
        return f"torch.save({state}, {path})"
    place = format_place(at)
    return f"checkpoint = torch.load({path}); {place} = {state}; torch.save(checkpoint, {path})"


def format_tie_code(first_key: str, other_keys: Collection[str]) -> str:
    """Return the assignments that tie the parameters `other_keys` of `model` to the first."""
    source = format_attribute(first_key)
    targets = islice(other_keys, _MAX_STATEMENTS)
    return "; ".join(f"{format_attribute(key)} = {source}" for key in targets)


def format_attribute(path: str, root: str = "model") -> str:
    """Return an expression that can be assigned to: `model.get_submodule("a.0").weight`.

    Args:
        path: a key, or the path of an unsaved tensor: "a.0.tables[1]".
        root: name of the variable that contains the module.
    """
    attribute, bracket, index = path.partition("[")
    owner, _, name = attribute.rpartition(".")
    module = f"{root}.get_submodule({quote_python(owner)})" if owner else root
    return f"{module}.{name}{bracket}{index}"


def format_copy_code(keys: Collection[str], source: str) -> str:
    """Return the assignments that take `keys` of state_dict from the mapping called `source`."""
    quoted_keys = map(quote_python, islice(keys, _MAX_STATEMENTS))
    return "; ".join(f"state_dict[{key}] = {source}[{key}]" for key in quoted_keys)


def split_common_suffix(first_key: str, second_key: str) -> tuple[str, str]:
    """Return what comes before the segments that both keys end with: "module." and ""."""
    first, second = first_key.split("."), second_key.split(".")
    while first and second and first[-1] == second[-1]:
        first.pop()
        second.pop()
    return "".join(f"{name}." for name in first), "".join(f"{name}." for name in second)


def format_update_code(
    target: str, source: str, prefixes: tuple[str, str], names: Collection[str]
) -> str:
    """Return the statement that copies tensors of one state of a file into another state of it.

    Args:
        target: place of the state that is changed.
        source: place of the state that has the tensors.
        prefixes: how keys begin in the target and in the source, where they differ.
        names: last segments of the keys to copy.
    """
    target_prefix, source_prefix = prefixes
    key = f"k.removeprefix({quote_python(source_prefix)})" if source_prefix else "k"
    key = f"{quote_python(target_prefix)} + {key}" if target_prefix else key
    is_named = f"k.endswith(({', '.join(map(quote_python, names))}))"
    if source_prefix:
        is_named = f"k.startswith({quote_python(source_prefix)}) and {is_named}"
    return (
        f"{format_place(target)}.update({{{key}: v for k, v in {format_place(source)}.items() if"
        f" {is_named}}})"
    )


_UNEXPECTED_ONLY: Final = re.compile(
    r'Unexpected key\(s\) in state_dict: ("[^"]+"(?:, "[^"]+")*)\.'
)
"""Error of load_state_dict() if there is no other, with all keys."""


def advise_own_state(error: str) -> str:
    """Return how a module loads its own state_dict(); code, if that has keys it does not read.

    Args:
        error: what loading it raises.
    """
    match = _UNEXPECTED_ONLY.fullmatch(error.strip())
    if match is None:
        return (
            "Have load_state_dict() and its hooks read what state_dict() and its hooks write, or "
            "write only registered state."
        )
    keys = re.findall('"([^"]+)"', match[1])
    pops = ", ".join(f"state_dict.pop(prefix + {quote_python(key)}, None)" for key in keys)
    return (
        "Read in _load_from_state_dict() what _save_to_state_dict() writes. If it is not needed, "
        "ignore it, in the constructor: self.register_load_state_dict_pre_hook(lambda module, "
        f"state_dict, prefix, *args: ({pops}))"
    )
