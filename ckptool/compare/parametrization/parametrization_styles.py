"""Two styles of one parameter -> Conversion: the arithmetic between them, or why there is none.

A weight norm and a spectral norm compute a weight from tensors that the file holds, pruning
multiplies it by a mask. From a plain weight a weight norm has torch's own right inverse, and a mask
of ones changes nothing.
"""

from enum import StrEnum
from typing import Final

from msgspec import Struct

from ckptool.compare.parametrization.norm_dims import (
    find_spectral_norm_dims,
    find_weight_norm_dims,
    get_weight_norm_shape,
    normalize_dim,
)
from ckptool.model import ComputedParameter, ModuleClass, TensorInfo


class ParametrizationStyle(StrEnum):
    """How a module stores a parameter: plain, or computed from other tensors."""

    PLAIN = "a plain parameter"
    OLD_WEIGHT_NORM = "torch.nn.utils.weight_norm"
    NEW_WEIGHT_NORM = "torch.nn.utils.parametrizations.weight_norm"
    OLD_SPECTRAL_NORM = "torch.nn.utils.spectral_norm"
    NEW_SPECTRAL_NORM = "torch.nn.utils.parametrizations.spectral_norm"
    PRUNED = "torch.nn.utils.prune"
    PARAMETRISED = "torch.nn.utils.parametrize"

    @property
    def is_weight_norm(self) -> bool:
        return self in (self.OLD_WEIGHT_NORM, self.NEW_WEIGHT_NORM)

    @property
    def is_spectral_norm(self) -> bool:
        return self in (self.OLD_SPECTRAL_NORM, self.NEW_SPECTRAL_NORM)


PARAMETRIZATION_CLASSES: Final = {
    ParametrizationStyle.OLD_WEIGHT_NORM: "torch.nn.utils.weight_norm.WeightNorm",
    ParametrizationStyle.NEW_WEIGHT_NORM: "torch.nn.utils.parametrizations._WeightNorm",
    ParametrizationStyle.OLD_SPECTRAL_NORM: "torch.nn.utils.spectral_norm.SpectralNorm",
    ParametrizationStyle.NEW_SPECTRAL_NORM: "torch.nn.utils.parametrizations._SpectralNorm",
    ParametrizationStyle.PRUNED: "torch.nn.utils.prune.BasePruningMethod",
}
"""Style -> qualified name of the class that computes the parameter."""
_NORM_DTYPES: Final = frozenset({"float64", "float32", "float16", "bfloat16"})
"""Dtypes in which torch computes its norms."""


class StyledParameter(Struct, frozen=True):
    """One parameter in the style of the file, or of the module."""

    style: ParametrizationStyle
    keys: tuple[str, ...]
    """Keys of g and v; of original, u and v; of original and mask; or of any parametrization's."""
    tensors: tuple[TensorInfo, ...]

    @property
    def weight(self) -> TensorInfo:
        """The tensor that has the shape of the plain parameter."""
        return self.tensors[1 if self.style.is_weight_norm else 0]


class Conversion(Struct, frozen=True):
    """The arithmetic from a parameter's tensors in the file to those in the module."""

    obstacle: str = ""
    """Why no arithmetic leads there; "" if it does."""
    file_dim: int = 0
    """`dim` of the file's norm; -1 for the norm over the whole tensor (dim=None)."""
    module_dim: int = 0
    """`dim` of the module's weight norm."""


def find_conversion(
    name: str,
    actual: StyledParameter,
    expected: StyledParameter,
    owner: ModuleClass | None,
) -> Conversion:
    """Return the way from the file's tensors to a plain weight, and from there to the module's.

    Args:
        name: of the parameter in the module that has it: "weight".
        actual: the parameter in the file.
        expected: the parameter in the module.
        owner: class facts of the module that has it; None if they are not known.
    """
    computed = owner.computed_parameters.get(name) if owner is not None else None
    file_dim = _choose_file_dim(actual, owner)
    rank = len(expected.weight.shape)
    module_dim = normalize_dim(computed.dim, rank) if computed is not None else 0
    obstacle = (
        _find_file_obstacle(actual, file_dim)
        or _find_module_obstacle(expected, computed)
        or _find_shape_obstacle(actual, expected, module_dim)
    )
    return Conversion(obstacle) if obstacle else Conversion("", file_dim or 0, module_dim)


def _choose_file_dim(actual: StyledParameter, owner: ModuleClass | None) -> int | None:
    """Return the dimension of the file's norm, 0 if it has none; None if it cannot be told.

    Several fit a weight norm only if each gives the same norm, over all elements; several fit a
    spectral norm of a square weight, which has the dimension that torch takes for its layer.
    """
    shapes = [tensor.shape for tensor in actual.tensors]
    if actual.style.is_weight_norm:
        dims = find_weight_norm_dims(shapes[0], shapes[1])
        return dims[0] if dims else None
    if actual.style.is_spectral_norm:
        dims = find_spectral_norm_dims(shapes[0], shapes[1], shapes[2])
        if owner is not None and owner.spectral_norm_dim in dims:
            return owner.spectral_norm_dim
        return dims[0] if len(dims) == 1 else None
    return 0


def _find_file_obstacle(actual: StyledParameter, dim: int | None) -> str:
    """Return why the file's tensors do not give a plain weight, "" if they do."""
    if actual.style is ParametrizationStyle.PARAMETRISED:
        return "what a parametrization computes is defined by its code, which is not in the file"
    dtypes = {tensor.dtype for tensor in actual.tensors}
    is_norm = actual.style.is_weight_norm or actual.style.is_spectral_norm
    if is_norm and (len(dtypes) > 1 or not dtypes <= _NORM_DTYPES):
        return f"its tensors are {' and '.join(sorted(dtypes))}, for which torch computes no norm"
    if dim is None and actual.style.is_weight_norm:
        g, v = actual.tensors
        return (
            f"`{g.key}` is {list(g.shape)}, which is not a norm of `{v.key}` {list(v.shape)} "
            "along one dimension"
        )
    if dim is None:
        original, u, v = actual.tensors
        return (
            f"the shapes of `{u.key}` {list(u.shape)} and `{v.key}` {list(v.shape)} do not "
            f"determine the dimension of `{original.key}` {list(original.shape)}"
        )
    return ""


def _find_module_obstacle(expected: StyledParameter, computed: ComputedParameter | None) -> str:
    """Return why a plain weight does not give the module's tensors, "" if it does."""
    if expected.style.is_spectral_norm:
        return (
            "`u` and `v` of the norm are estimated during training, and cannot be derived from a "
            "plain weight"
        )
    if expected.style is ParametrizationStyle.PARAMETRISED:
        return (
            "only the code of the parametrization determines which tensors it needs to compute "
            "this weight"
        )
    by = "" if computed is None else computed.by
    if (
        expected.style is not ParametrizationStyle.PLAIN
        and by != PARAMETRIZATION_CLASSES[expected.style]
    ):
        keys = " and ".join(f"`{key}`" for key in expected.keys)
        return (
            f"the module has {keys}, not {expected.style}: what it computes is defined by its own "
            "code"
        )
    return ""


def _find_shape_obstacle(
    actual: StyledParameter, expected: StyledParameter, module_dim: int
) -> str:
    """Return which shapes do not fit each other, "" if all do."""
    weight, module_weight = actual.weight, expected.weight
    if weight.shape != module_weight.shape:
        return (
            f"`{weight.key}` is {list(weight.shape)}, and the module's `{module_weight.key}`"
            f" {list(module_weight.shape)}"
        )
    if expected.style.is_weight_norm:
        if weight.dtype not in _NORM_DTYPES:
            return f"it is {weight.dtype}, for which torch computes no norm"
        g = expected.tensors[0]
        if g.shape != get_weight_norm_shape(weight.shape, module_dim):
            return f"the module's `{g.key}` is {list(g.shape)}, which is not a norm of it"
    if expected.style is ParametrizationStyle.PRUNED and weight.dtype not in _NORM_DTYPES:
        return f"it is {weight.dtype}, for which pruning makes no mask"
    return ""
