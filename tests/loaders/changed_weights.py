"""Changes of the weights of a folder that a framework wrote."""

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, ones

State = dict[str, Tensor]


def change_file(folder: Path, change: Callable[[State], object]) -> None:
    """Change the state in the one file of weights of a folder."""
    (file,) = folder.glob("*.safetensors")
    state = load_file(file)
    change(state)
    save_file(state, file, metadata={"format": "pt"})


def drop_one(state: State) -> None:
    del state[min(state)]


def add_one(state: State) -> None:
    state["surplus.weight"] = ones(2)


def cut_one(state: State) -> None:
    """Cut the largest tensor in half."""
    key = max(sorted(state), key=lambda key: state[key].numel())
    state[key] = state[key][: len(state[key]) // 2].clone()
