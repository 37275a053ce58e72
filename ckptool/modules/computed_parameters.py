"""nn.Module -> the parameters that torch's norms, masks and parametrizations compute in it."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from ckptool.model import ComputedParameter
from ckptool.modules.walk import get_qualified_name

if TYPE_CHECKING:
    from torch import nn

_NORM_HOOKS: Final = (
    "torch.nn.utils.weight_norm.WeightNorm",
    "torch.nn.utils.spectral_norm.SpectralNorm",
)
_PARAMETRIZATIONS: Final = (
    "torch.nn.utils.parametrizations._WeightNorm",
    "torch.nn.utils.parametrizations._SpectralNorm",
)


def find_computed_parameters(module: "nn.Module") -> dict[str, ComputedParameter]:
    """Return name -> what computes it, for the parameters of `module` itself.

    A parameter that two of them compute, or code other than torch's as well, is left out.
    """
    computed_by_name: dict[str, list[ComputedParameter]] = {}
    for name, computed in (*_iter_hooked(module), *_iter_parametrized(module)):
        computed_by_name.setdefault(name, []).append(computed)
    return {name: computed[0] for name, computed in computed_by_name.items() if len(computed) == 1}


def get_spectral_norm_dim(module: "nn.Module") -> int:
    """Return the dimension that torch.nn.utils.spectral_norm takes for the layer by itself."""
    from torch import nn

    transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    return 1 if isinstance(module, transposed) else 0


def _iter_hooked(module: "nn.Module") -> Iterator[tuple[str, ComputedParameter]]:
    """Yield what forward pre-hooks compute: the old norms, and pruning."""
    from torch.nn.utils.prune import BasePruningMethod

    hooks: Iterable[Any] = module._forward_pre_hooks.values()  # noqa: SLF001
    for hook in hooks:
        name = get_qualified_name(type(hook))
        if name in _NORM_HOOKS:
            yield hook.name, ComputedParameter(name, _get_dim(hook))
        elif isinstance(hook, BasePruningMethod) and _multiplies_mask(type(hook)):
            tensor_name = str(getattr(hook, "_tensor_name", ""))
            yield tensor_name, ComputedParameter(get_qualified_name(BasePruningMethod))


def _multiplies_mask(method: type) -> bool:
    """Return whether the pruning method leaves its forward pass to torch."""
    from torch.nn.utils.prune import BasePruningMethod

    return all(
        getattr(method, name) is getattr(BasePruningMethod, name)
        for name in ("__call__", "apply_mask")
    )


def _iter_parametrized(module: "nn.Module") -> Iterator[tuple[str, ComputedParameter]]:
    """Yield the parametrized parameters; one of several parametrizations has no name here."""
    from torch.nn.utils.parametrize import is_parametrized

    if not is_parametrized(module):
        return
    for name, parametrizations in module.parametrizations.items():  # type: ignore[operator,union-attr]
        members = list(parametrizations)
        qualified_name = get_qualified_name(type(members[0])) if len(members) == 1 else ""
        is_torch_norm = qualified_name in _PARAMETRIZATIONS
        yield (
            name,
            (
                ComputedParameter(qualified_name, _get_dim(members[0]))
                if is_torch_norm
                else ComputedParameter("")
            ),
        )


def _get_dim(norm: Any) -> int:
    return norm.dim if isinstance(norm.dim, int) else 0
