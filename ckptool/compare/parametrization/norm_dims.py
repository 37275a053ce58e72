"""Shapes of a norm's tensors -> the dimensions that the norm can be of."""

from math import prod
from typing import Final

WHOLE_TENSOR: Final = -1
"""torch.nn.utils.weight_norm's dim=None: one norm over all elements, and a `g` without dims."""


def find_weight_norm_dims(g_shape: tuple[int, ...], v_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return each `dim` for which torch's weight norm of a `v` of this shape has such a `g`.

    Several are possible only where `g` has one element: it is the norm over all of `v` then,
    whichever of them is meant.
    """
    # torch 0.3, which had no tensors without dims, gave `g` the shape [1] for dim=None.
    if g_shape in {(), (1,)} and g_shape != v_shape:
        return (WHOLE_TENSOR,)
    if len(g_shape) != len(v_shape):
        return ()
    return tuple(
        dim
        for dim, size in enumerate(v_shape)
        if g_shape == tuple(size if n == dim else 1 for n in range(len(v_shape)))
    )


def normalize_dim(dim: int, rank: int) -> int:
    """Return `dim` counted from the front; -1, torch's dim=None for weight norm, stays."""
    return dim if dim == WHOLE_TENSOR or not rank else dim % rank


def get_weight_norm_shape(v_shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
    """Return the shape of `g`, like that of torch.norm_except_dim(v, 2, dim)."""
    if dim == WHOLE_TENSOR:
        return ()
    return tuple(size if n == dim else 1 for n, size in enumerate(v_shape))


def find_spectral_norm_dims(
    shape: tuple[int, ...], u_shape: tuple[int, ...], v_shape: tuple[int, ...]
) -> tuple[int, ...]:
    """Return each `dim` for which torch's spectral norm of this shape has such a `u` and `v`."""
    return tuple(
        dim
        for dim, size in enumerate(shape)
        if u_shape == (size,) and v_shape == (prod(shape[:dim]) * prod(shape[dim + 1 :]),)
    )
