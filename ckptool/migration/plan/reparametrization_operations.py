"""Operations between a plain parameter and one that torch's norms compute in each forward pass."""

from collections.abc import Mapping
from typing import ClassVar

from msgspec.structs import replace

from ckptool.compare.parametrization.norm_dims import (
    find_spectral_norm_dims,
    find_weight_norm_dims,
    get_weight_norm_shape,
)
from ckptool.errors import PlanError
from ckptool.migration.plan.draft import READABLE_LAYOUTS, Draft, PlannedTensor, get_item
from ckptool.migration.plan.operation import IrreversibleError, Operation, OperationContext
from ckptool.migration.plan.torch_arithmetic import (
    compute_norm,
    compute_spectral_normed,
    compute_weight_normed,
)


class RemoveWeightNorm(Operation, frozen=True, kw_only=True, tag="remove-weight-norm"):
    """Compute the plain parameter `key`, v * (g / ||v||), from `g` and `v` of a weight norm."""

    key: str
    g: str
    v: str
    dim: int = 0
    """`dim` of the weight norm; -1 for the norm over the whole tensor (dim=None)."""
    data_loss: ClassVar[str] = "the length of v, which does not affect what the layer computes"

    def apply(self, draft: Draft, context: OperationContext) -> Draft:
        step = f"remove-weight-norm `{self.key}`"
        g, v = (_get_computed_item(step, draft, key).tensor for key in (self.g, self.v))
        if self.dim not in find_weight_norm_dims(g.shape, v.shape):
            raise PlanError(
                f"{step}: `{self.g}` is {list(g.shape)}, which is not a norm of `{self.v}`"
                f" {list(v.shape)} along dimension {self.dim}"
            )
        weight = context.compute_tensor(step, self.key, compute_weight_normed, (g, v), self.dim)
        return _replace_items(step, draft, (self.g, self.v), {self.key: PlannedTensor(weight)})

    def build_inverse(self) -> Operation:
        return AddWeightNorm(
            key=self.key,
            g=self.g,
            v=self.v,
            dim=self.dim,
            why="a different length of v, and the same weight up to rounding",
        )

    @property
    def before_after_text(self) -> tuple[str, str]:
        return f"{self.g}, {self.v}", self.key


class AddWeightNorm(Operation, frozen=True, kw_only=True, tag="add-weight-norm"):
    """Make `g` = ||weight|| and `v` = weight of the plain parameter `key`, as torch does."""

    key: str
    g: str
    v: str
    dim: int = 0
    """`dim` of the weight norm; -1 for the norm over the whole tensor (dim=None)."""
    data_loss: ClassVar[str] = "the last bit of some elements, where v * (g / ||v||) rounds"

    def apply(self, draft: Draft, context: OperationContext) -> Draft:
        step = f"add-weight-norm `{self.key}`"
        item = _get_computed_item(step, draft, self.key)
        rank = len(item.tensor.shape)
        if not -1 <= self.dim < rank or not rank:
            raise PlanError(f"{step}: it has {rank} dimensions and no dimension {self.dim}")
        g = context.compute_tensor(step, self.g, compute_norm, (item.tensor,), self.dim)
        assert g.shape == get_weight_norm_shape(item.tensor.shape, self.dim)
        return _replace_items(step, draft, (self.key,), {self.g: PlannedTensor(g), self.v: item})

    def build_inverse(self) -> Operation:
        return RemoveWeightNorm(key=self.key, g=self.g, v=self.v, dim=self.dim)

    @property
    def before_after_text(self) -> tuple[str, str]:
        return self.key, f"{self.g}, {self.v}"


class RemoveSpectralNorm(Operation, frozen=True, kw_only=True, tag="remove-spectral-norm"):
    """Compute the plain parameter `key`, original / (u^T W v), from the tensors of a spectral norm.

    W is `original` as a matrix whose rows are along `dim`; u and v are those of the file, as in
    eval mode.
    """

    key: str
    original: str
    u: str
    v: str
    dim: int = 0
    """`dim` of the spectral norm: 0, and 1 for a transposed convolution, unless it was given."""
    data_loss: ClassVar[str] = (
        "u, v and the scale of the weight, which training would continue with"
    )

    def apply(self, draft: Draft, context: OperationContext) -> Draft:
        step = f"remove-spectral-norm `{self.key}`"
        keys = (self.original, self.u, self.v)
        original, u, v = (_get_computed_item(step, draft, key).tensor for key in keys)
        if self.dim not in find_spectral_norm_dims(original.shape, u.shape, v.shape):
            raise PlanError(
                f"{step}: `{self.u}` {list(u.shape)} and `{self.v}` {list(v.shape)} do not match "
                f"dimension {self.dim} of `{self.original}` {list(original.shape)}"
            )
        weight = context.compute_tensor(
            step, self.key, compute_spectral_normed, (original, u, v), self.dim
        )
        return _replace_items(step, draft, keys, {self.key: PlannedTensor(weight)})

    def build_inverse(self) -> Operation:
        raise IrreversibleError(f"remove-spectral-norm `{self.key}`: u, v and the scale are gone")

    @property
    def before_after_text(self) -> tuple[str, str]:
        return f"{self.original}, {self.u}, {self.v}", self.key


def _get_computed_item(step: str, draft: Draft, key: str) -> PlannedTensor:
    """Return the item whose elements are computed with.

    Raises:
        PlanError: it is not there, no plain tensor, or cast by an earlier step.
    """
    item = get_item(step.partition(" ")[0], draft, key, layouts=READABLE_LAYOUTS)
    if item.casts:
        raise PlanError(f"{step}: compute first, then cast the result")
    return item


def _replace_items(
    step: str, draft: Draft, old_keys: tuple[str, ...], new_items: Mapping[str, PlannedTensor]
) -> Draft:
    """Return the draft with `new_items` in the place of the first of `old_keys`.

    Raises:
        PlanError: a new key is taken.
    """
    items: dict[str, PlannedTensor] = {}
    for key, item in draft.items.items():
        if key in old_keys:
            items |= new_items
        elif key in new_items:
            raise PlanError(f"{step}: the file already has `{key}`")
        else:
            items[key] = item
    for key in new_items:
        if key in draft.non_tensor_keys:
            raise PlanError(f"{step}: the file already has `{key}`")
    return replace(draft, items=items)
