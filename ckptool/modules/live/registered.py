"""nn.Module -> its members and registered tensors, by one walk of what load_state_dict() goes over.

`named_parameters()` and the like walk the whole module for each of them, and a class may override
them; a load goes by what is registered.
"""

from typing import TYPE_CHECKING, NamedTuple

from ckptool.model import Kind

if TYPE_CHECKING:
    from torch import Tensor, nn


class RegisteredTensor(NamedTuple):
    """A parameter or a buffer of a module; a tied one is there under each name."""

    key: str
    tensor: "Tensor"
    kind: Kind
    is_saved: bool
    """False for a buffer with `persistent=False`."""


def list_members(module: "nn.Module") -> "list[tuple[str, nn.Module]]":
    """Return (prefix, module) of the module and all below it, a shared one under each prefix.

    Raises:
        RecursionError: they are nested as deep as torch cannot load, or contain each other.
    """
    members: list[tuple[str, nn.Module]] = []
    _add_members(module, "", members)
    return members


def list_registered(module: "nn.Module") -> list[RegisteredTensor]:
    """Return the parameters and buffers, in the order in which load_state_dict() comes to them.

    Raises:
        RecursionError: as `list_members`.
    """
    fields: list[tuple[str, Tensor, Kind, bool]] = []
    for prefix, member in list_members(module):
        start = f"{prefix}." if prefix else ""
        for name, parameter in member._parameters.items():  # noqa: SLF001
            if parameter is not None:
                fields.append((start + name, parameter, Kind.PARAMETER, True))
        for name, buffer in member._buffers.items():  # noqa: SLF001
            if buffer is not None:
                is_saved = name not in member._non_persistent_buffers_set  # noqa: SLF001
                fields.append((start + name, buffer, Kind.BUFFER, is_saved))
    return list(map(RegisteredTensor._make, fields))


def _add_members(module: "nn.Module", prefix: str, members: "list[tuple[str, nn.Module]]") -> None:
    members.append((prefix, module))
    for name, child in module._modules.items():  # noqa: SLF001
        if child is not None:
            _add_members(child, f"{prefix}.{name}" if prefix else name, members)
