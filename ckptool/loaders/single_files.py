"""Checkpoint -> the class of diffusers that loads it with from_single_file(), by its keys."""

from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from ckptool.model import Checkpoint


class SingleFileLayout(Struct, frozen=True):
    """Keys by which diffusers recognises a model in a file without a configuration."""

    marker: str
    """A key of the state at the root of the file."""
    class_name: str
    description: str


_LAYOUTS: Final = (
    SingleFileLayout(
        "control_model.time_embed.0.weight",
        "ControlNetModel",
        "a ControlNet in its original layout (`control_model.*`)",
    ),
    SingleFileLayout(
        "controlnet_cond_embedding.conv_in.weight",
        "ControlNetModel",
        "a ControlNet in the layout of diffusers",
    ),
)


def find_single_file_layout(checkpoint: Checkpoint) -> SingleFileLayout | None:
    """Return the layout whose marker is a key of the file, as diffusers looks for it; else None."""
    keys = {*_iter_keys(checkpoint)}
    return next((layout for layout in _LAYOUTS if layout.marker in keys), None)


def suggest_single_file(checkpoint: Checkpoint | None) -> str:
    """Return a sentence with the call of diffusers that loads the file, "" if none is known."""
    layout = find_single_file_layout(checkpoint) if checkpoint is not None else None
    if layout is None:
        return ""
    return (
        f". Its keys are those of {layout.description}: {layout.class_name}.from_single_file() of"
        " diffusers loads it, and save_pretrained() then writes a folder that ckptool judges"
    )


def _iter_keys(checkpoint: Checkpoint) -> Iterator[str]:
    """Yield the keys that diffusers reads: those at `state_dict`, else of the root."""
    for state in checkpoint.states:
        if state.at in {"", "state_dict"}:
            yield from state.tensors
