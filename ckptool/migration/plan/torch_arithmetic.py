"""Tensors of a file -> a new one, computed by torch's functions in the file's dtype, on the CPU.

Each function does what torch does in a forward pass, with the same calls, so that the result is
what the layer computed, bit for bit. torch is imported only here, and only if a plan computes.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from ckptool.compare.parametrization.norm_dims import find_spectral_norm_dims, find_weight_norm_dims
from ckptool.errors import PlanError
from ckptool.model import TensorInfo
from ckptool.values.elements import iter_elements

if TYPE_CHECKING:
    from torch import Tensor

_ALIGNED: Final = 0.99
"""Cosine above which a vector estimates a singular vector, after a step of training too."""
_IDENTICAL: Final = 0.9999
"""Cosine above which two vectors are the same but for rounding, in half precision too."""


class ComputedTensor(NamedTuple):
    """A result of arithmetic, and how far it is from being exact."""

    value: "Tensor"
    rounding: float = 0.0
    """Largest absolute difference by which rounding may change the weight; 0.0 if by none."""


TensorFunction = Callable[..., ComputedTensor]
"""Takes tensors, then the `dim` of a norm."""


def compute_from_file(
    function: TensorFunction, tensors: Sequence[TensorInfo], dim: int
) -> ComputedTensor:
    """Read the elements of `tensors` and return what `function` makes of them.

    Raises:
        PlanError: torch cannot compute it, or the values contradict `dim`.
        ReadError: a file cannot be read.
    """
    try:
        return function(*map(_read_tensor, tensors), dim)
    except (RuntimeError, TypeError) as error:
        raise PlanError(f"torch: {str(error).partition(chr(10))[0]}") from error


def multiply(original: "Tensor", mask: "Tensor", _dim: int) -> ComputedTensor:
    """Return the pruned parameter, as torch.nn.utils.prune computes it."""
    return ComputedTensor(mask * original)


def compute_weight_normed(g: "Tensor", v: "Tensor", dim: int) -> ComputedTensor:
    """Return v * (g / ||v||), as torch's weight norm computes it.

    Where `g` has one element, several dims give the same norm, and may round otherwise.
    """
    import torch

    weight = torch._weight_norm(v, g, dim)  # noqa: SLF001 - what WeightNorm calls
    others = [n for n in find_weight_norm_dims(tuple(g.shape), tuple(v.shape)) if n != dim]
    differences = (
        _largest_difference(weight, torch._weight_norm(v, g, n))  # noqa: SLF001
        for n in others
    )
    return ComputedTensor(weight, max(differences, default=0.0))


def compute_norm(weight: "Tensor", dim: int) -> ComputedTensor:
    """Return ||weight||, which torch's right inverse of the weight norm takes as `g`.

    Raises:
        PlanError: a norm is 0, or too large for the dtype: the layer would compute nan.
    """
    import torch

    g = torch.norm_except_dim(weight, 2, dim)
    recomputed = torch._weight_norm(weight, g, dim)  # noqa: SLF001 - what WeightNorm calls
    if not torch.equal(recomputed.isfinite(), weight.isfinite()):
        reason = "of 0" if not g.all() else f"that {weight.dtype} cannot represent"
        raise PlanError(f"it has a norm {reason}, and v * (g / ||v||) is nan there")
    return ComputedTensor(g, _largest_difference(weight, recomputed))


def compute_spectral_normed(
    original: "Tensor", u: "Tensor", v: "Tensor", dim: int
) -> ComputedTensor:
    """Return original / (u^T W v) with the stored u and v, as torch's spectral norm in eval mode.

    Raises:
        PlanError: u and v are singular vectors along another dimension than `dim`.
    """
    import torch

    dims = find_spectral_norm_dims(tuple(original.shape), tuple(u.shape), tuple(v.shape))
    if len(dims) > 1:
        _check_dim(original, u, v, dim, dims)
    matrix = _to_matrix(original, dim)
    sigma = torch.dot(u, torch.mv(matrix, v))
    return ComputedTensor(original / sigma)


def _check_dim(original: "Tensor", u: "Tensor", v: "Tensor", dim: int, dims: Sequence[int]) -> None:
    """Raise PlanError if u and v are singular vectors along another dimension than `dim`.

    Shapes do not tell where dimensions are of one size. If they are singular vectors along none,
    as before the first power iteration, nothing speaks against `dim`.
    """
    alignments = {n: _get_alignment(_to_matrix(original, n), u, v) for n in dims}
    best = max(dims, key=lambda n: alignments[n])
    if alignments[dim] < min(_IDENTICAL, alignments[best]) and alignments[best] > _ALIGNED:
        raise PlanError(
            f"u and v match dimension {best} of the weight, not {dim}: set dim = {best} in this "
            "step of the plan"
        )


def _to_matrix(weight: "Tensor", dim: int) -> "Tensor":
    """Return the weight as a matrix whose rows are along `dim`, as torch's spectral norm does."""
    if dim != 0:
        weight = weight.permute(dim, *(n for n in range(weight.dim()) if n != dim))
    return weight.reshape(weight.size(0), -1)


def _get_alignment(matrix: "Tensor", u: "Tensor", v: "Tensor") -> float:
    """Return the cosine of u and W v, or of v and W^T u if that is larger.

    One of them is 1 after a power iteration, in which torch makes each from the other.
    """
    import torch

    wide, left, right = matrix.double(), u.double(), v.double()
    cosines = (
        torch.cosine_similarity(left, wide @ right, dim=0),
        torch.cosine_similarity(right, wide.T @ left, dim=0),
    )
    return max(float(cosine.abs()) for cosine in cosines)


def _largest_difference(first: "Tensor", second: "Tensor") -> float:
    return float((first.double() - second.double()).abs().max()) if first.numel() else 0.0


def _read_tensor(tensor: TensorInfo) -> "Tensor":
    """Return the tensor in memory of torch, whose kernels may round otherwise if unaligned."""
    import torch

    dtype = getattr(torch, tensor.dtype)
    if not tensor.numel:
        return torch.empty(tensor.shape, dtype=dtype)
    data = bytearray()
    for piece in iter_elements(tensor):
        data += piece
    return torch.frombuffer(data, dtype=dtype).clone().reshape(tensor.shape)
