"""Tensors of another shape, which load_state_dict raises for, collected instead."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def drop_mismatches(model: Any) -> Iterator[dict[str, tuple[int, ...]]]:
    """Take tensors of another shape out of what `model` is given to load.

    Yields:
        Key of the module -> shape in the file; filled when the model is loaded.
    """
    load = model.load_state_dict
    mismatched_shapes: dict[str, tuple[int, ...]] = {}

    def load_the_others(state: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        shapes = {key: tensor.shape for key, tensor in model.state_dict(keep_vars=True).items()}
        mismatched_shapes.update(
            {k: tuple(t.shape) for k, t in state.items() if t.shape != shapes.get(k, t.shape)}
        )
        others = {key: tensor for key, tensor in state.items() if key not in mismatched_shapes}
        return load(others, *args, **kwargs)

    model.load_state_dict = load_the_others
    try:
        yield mismatched_shapes
    finally:
        del model.load_state_dict
