"""Checkpoint x ModuleInfo -> ModuleDiff: how a module would load a state_dict."""

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from ckptool.compare.changes import Change, Changed, Missing, Unexpected, is_shape_mismatch
from ckptool.compare.framework.loading_info import LoadingInfo
from ckptool.compare.fused_projections import FusedProjection
from ckptool.compare.left_out_ties import SINGLE_NAME_CONTAINERS
from ckptool.compare.load_outcome import LoadOutcome, LoadStep, LoadStepKind
from ckptool.compare.parametrization.reparametrization import Reparametrization
from ckptool.compare.parts import PartMatch
from ckptool.compare.quantization.difference import QuantizationDifference
from ckptool.compare.rename_search.rename_groups import RenameGroup
from ckptool.compare.renames import PrefixRewrite
from ckptool.model import Checkpoint, Kind, ModuleInfo, Skipped, StateDict, natural_sort_key
from ckptool.phrases import join_limited
from ckptool.values.statistics import CastEffect


class ModuleDiff(Struct, frozen=True):
    """Comparison of a state in a checkpoint with the state_dict that a module expects."""

    checkpoint: Checkpoint
    state: StateDict
    module: ModuleInfo
    changes: tuple[Change, ...]
    """In the order of the module's keys, then of the file's."""
    missing_non_tensors: tuple[str, ...] = ()
    """Keys without a tensor (extra state) that the module saves and the file does not have."""
    unexpected_non_tensors: tuple[str, ...] = ()
    mistyped_keys: Mapping[str, str] = {}
    """Key of a tensor of the module -> what the file has there that torch does not load as one."""
    rewrite: PrefixRewrite | None = None
    reshaped_keys: Mapping[str, str] = {}
    """Key in the file -> key in the module that `rewrite` makes of it, if the shapes differ."""
    part: PartMatch | None = None
    """Where the file is the state of one sub-module, or the module one part of the file."""
    rename_groups: tuple[RenameGroup, ...] = ()
    """Keys of the file that are probably keys of the module; a key that is in both, with another
    shape, may be part of a group (a layer that moved by one place)."""
    equal_values: Mapping[str, bool] = {}
    """Unexpected key that is unsaved state of the module -> whether the values are equal; only
    keys whose values could be compared."""
    reparametrizations: tuple[Reparametrization, ...] = ()
    """Parameters in different parametrization styles; those with `handled_by_torch_hook` are not
    in `changes`."""
    fused_projections: tuple[FusedProjection, ...] = ()
    """Query, key and value projections: one tensor on one side, three on the other."""
    quantization: QuantizationDifference | None = None
    """Weights that one side has quantised and the other not so; None if there are none."""
    tied_missing_keys: Mapping[str, str] = {}
    """Missing key -> key of the file that is tied to it in the module."""
    retie_refusal: str = ""
    """Why `safetensors.torch.load_model` does not load the file, "" if it does or was not asked."""
    diverged_ties: tuple[tuple[str, str], ...] = ()
    """Pairs of keys tied by the module or by the file's metadata, with different values."""
    better_state: StateDict | None = None
    """Another state of the file that matches the module better than `state`; None if none does."""
    cast_effects: Mapping[str, CastEffect] = {}
    """Key with another dtype -> effect of the cast on its values; empty if values were not read."""
    constant_fingerprints: Mapping[str, tuple[str, ...]] = {}
    """Key of a buffer that every construction makes the same -> its fingerprint in the file, then
    those in the half-precision dtypes that hold it exactly; empty if values were not read."""
    load_outcome: LoadOutcome | None = None
    """Result of asking the module's own loading code; None if it has none, or was not asked."""
    load_steps: tuple[LoadStep, ...] = ()
    """What that code does in addition to copying tensors by name, if the load succeeds."""
    loading_info: LoadingInfo | None = None
    """What the framework's loader does, where the module is one of a framework's; else None."""
    is_planned: bool = False
    """Whether no file holds the state yet: it is the result of a plan."""
    unchecked_load: Skipped | None = None
    """What could not be tried of the load, so that keys and shapes decide; None if all was."""

    @property
    def missing_keys(self) -> tuple[str, ...]:
        tensors = tuple(c.key for c in self.changes if isinstance(c, Missing))
        return (*tensors, *self.missing_non_tensors)

    @property
    def absent_keys(self) -> tuple[str, ...]:
        """Keys that the file does not have: missing, or added by the module's own loading code."""
        added = tuple(s.key for s in self.load_steps if s.kind is LoadStepKind.ADDED)
        return (*self.missing_keys, *added)

    @property
    def unexpected_keys(self) -> tuple[str, ...]:
        tensors = tuple(c.key for c in self.changes if isinstance(c, Unexpected))
        return (*tensors, *self.unexpected_non_tensors)

    @property
    def explained_keys(self) -> frozenset[str]:
        """Missing, unexpected and mismatched keys that another field of the diff explains."""
        keys = {key for group in self.rename_groups for key in group.keys}
        keys |= {*self.tied_missing_keys}
        if self.quantization:
            keys |= self.quantization.explained_keys
        if self.part:
            keys |= self.part.explained_keys
        if self.rewrite:
            keys |= self.rewrite.explained_keys
        keys |= {*self.reshaped_keys, *self.reshaped_keys.values()}
        keys |= {*self.average_counters}
        keys |= {
            k
            for reparametrization in self.reparametrizations
            for k in (*reparametrization.file_keys, *reparametrization.module_keys)
        }
        return frozenset(
            keys
            | {
                k
                for projection in self.fused_projections
                for k in (projection.fused_key, *projection.piece_keys)
            }
        )

    @property
    def average_counters(self) -> tuple[str, ...]:
        """The key `n_averaged` of torch.optim.swa_utils.AveragedModel, whose prefix is taken out.

        It counts the models that were averaged, and is no part of the model itself; () without it.
        """
        if self.rewrite is None or not {"module", "module."} & {*self.rewrite.removed_segments}:
            return ()
        tensor = self.state.tensors.get(_AVERAGE_COUNTER)
        is_counter = tensor is not None and (tensor.dtype, tensor.numel) == ("int64", 1)
        return (
            (_AVERAGE_COUNTER,) if is_counter and _AVERAGE_COUNTER in self.unexpected_keys else ()
        )

    @property
    def vacated_keys(self) -> tuple[str, ...]:
        """Keys whose tensor in the file is renamed to another key, with none in its place."""
        old_keys = {key for group in self.rename_groups for key in group.pairs}
        new_keys = {key for group in self.rename_groups for key in group.pairs.values()}
        return tuple(k for k in self.module.saved_tensors if k in old_keys and k not in new_keys)

    @property
    def displaced_keys(self) -> tuple[str, ...]:
        """Keys of the file to which another of its tensors is renamed, and that are not renamed."""
        old_keys = {key for group in self.rename_groups for key in group.pairs}
        new_keys = {key for group in self.rename_groups for key in group.pairs.values()}
        return tuple(k for k in self.state.tensors if k in new_keys and k not in old_keys)

    @property
    def shape_mismatches(self) -> tuple[Changed, ...]:
        """Changes that load_state_dict reports as "size mismatch", with strict=False too."""
        return tuple(c for c in self.changes if isinstance(c, Changed) and is_shape_mismatch(c))

    @property
    def packed_keys(self) -> tuple[str, ...]:
        """Keys of the module without a tensor that are tuples with tensors in the file."""
        known_keys = {*self.missing_non_tensors, *self.state.non_tensors, *self.state.tensors}
        return tuple(key for key in self.module.non_tensors if key not in known_keys)

    @property
    def nested_keys(self) -> tuple[str, ...]:
        """Keys beside the state's tensors whose values are containers: of tensors, or of data."""
        own_keys = {*self.packed_keys, *self.module.non_tensors, *self.state.tensors}
        return tuple(key for key in self.state.container_keys if key not in own_keys)

    @property
    def matched_keys(self) -> tuple[str, ...]:
        unmatched_keys = {c.key for c in self.changes if isinstance(c, Missing)}
        unmatched_keys |= {c.key for c in self.shape_mismatches}
        unmatched_keys |= self.mistyped_keys.keys()
        unmatched_keys |= {s.key for s in self.load_steps if s.kind is LoadStepKind.LOST}
        return tuple(key for key in self.module.saved_tensors if key not in unmatched_keys)

    @property
    def coverage(self) -> float:
        """Fraction (0.0 to 1.0) of the parameters' elements that load; 1.0 without parameters."""
        matched_keys = self.matched_keys
        if len(matched_keys) == len(self.module.saved_tensors):
            return 1.0
        parameters = [
            module_tensor
            for module_tensor in self.module.saved_tensors.values()
            if module_tensor.kind is Kind.PARAMETER
        ]
        total_numel = sum(module_tensor.tensor.numel for module_tensor in parameters)
        loadable_keys = {*matched_keys, *self.tied_missing_keys}
        loaded_numel = sum(
            module_tensor.tensor.numel
            for module_tensor in parameters
            if module_tensor.key in loadable_keys
        )
        return loaded_numel / total_numel if total_numel else 1.0

    @property
    def loads_whole(self) -> bool:
        """Whether the module's own loading code was asked, and loads all of it strictly."""
        is_lost = any(step.kind is LoadStepKind.LOST for step in self.load_steps)
        return self.load_outcome is not None and self.is_strict and not is_lost

    @property
    def is_refused(self) -> bool:
        """Whether keys and shapes match, and torch or the module's own code raises all the same."""
        has_differences = self.missing_keys or self.unexpected_keys or self.shape_mismatches
        return not (self.is_strict or has_differences or self.mistyped_keys)

    @property
    def retied_keys(self) -> Mapping[str, str]:
        """Missing key -> tied key of the file, which the safetensors loader ties again.

        Empty for containers that store tied tensors under every name, and where it does not load.
        """
        is_retied = self.checkpoint.container in SINGLE_NAME_CONTAINERS and not self.retie_refusal
        return self.tied_missing_keys if is_retied else {}

    @property
    def is_strict(self) -> bool:
        """Whether `load_state_dict(strict=True)` succeeds, after `retied_keys` are tied again.

        Of a framework's module, whether its loader finds a counterpart for every tensor.
        """
        if self.loading_info is not None:
            return self.loading_info.is_whole and not self.unexpected_non_tensors
        if self.load_outcome is not None:
            return self.load_outcome.is_strict
        missing = [key for key in self.missing_keys if key not in self.retied_keys]
        has_differences = missing or self.unexpected_keys or self.shape_mismatches
        return not (has_differences or self.mistyped_keys)


_AVERAGE_COUNTER: Final = "n_averaged"


def strict_load_obstacles(diff: ModuleDiff) -> str:
    """Return a text with the keys that prevent strict loading; "" if it succeeds."""
    if diff.load_outcome is not None and diff.is_strict:
        return ""
    if diff.loading_info is not None and diff.loading_info.error:
        return f"{diff.loading_info.loader} raises: {diff.loading_info.error}"
    counts = (
        ("missing", tuple(key for key in diff.missing_keys if key not in diff.retied_keys)),
        ("unexpected", diff.unexpected_keys),
        ("shape mismatch", tuple(change.key for change in diff.shape_mismatches)),
        ("without a tensor", tuple(diff.mistyped_keys)),
    )
    text = "; ".join(f"{len(keys)} {label} ({_join_few(keys)})" for label, keys in counts if keys)
    return text or (diff.load_outcome.error if diff.load_outcome is not None else "")


def _join_few(keys: tuple[str, ...]) -> str:
    return join_limited(sorted(keys, key=natural_sort_key), 3, more=" ...")
