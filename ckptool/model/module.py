"""Modules: all state of a live `nn.Module`, saved and unsaved."""

from collections.abc import Mapping
from enum import StrEnum
from functools import cached_property
from typing import Final

from msgspec import Struct

from ckptool.model.skipped import Skipped
from ckptool.model.tensors import Kind, Preview, TensorInfo


class Constancy(StrEnum):
    """Whether a tensor has the same value when the module is constructed again."""

    CONSTANT = "constant"
    RANDOM = "random"
    MUTATED = "mutated"
    UNKNOWN = "unknown"


CONSTANCY_CHECK: Final = "whether the constructor computes the same values again"
"""What is not checked where a second instance cannot be built."""


class ModuleTensor(Struct, frozen=True):
    """One tensor or array of a live module, saved or not."""

    tensor: TensorInfo
    """Its `key` is the state_dict key, or the path if unsaved: "convs[0].weight", "banks['k']"."""
    kind: Kind
    owner: str
    """Qualified name of the class of the module that owns it."""
    is_saved: bool
    """Whether `state_dict()` contains it."""
    constancy: Constancy
    follows_to: bool
    """Whether `.to(device)` moves it."""
    follows_dtype: bool
    """Whether `.half()` converts it; True if it is not floating point."""
    assigned_at: str = ""
    """"file:line" of the assignment, "" if not found."""
    assigned_to: str = ""
    """What that line assigns to, as source: "self.mask", "self.encoder.mask"; "" if it is no
    assignment of an attribute of this name."""
    used_at: str = ""
    """"file:line" of the first use reachable from forward, "" if none was found."""
    moved_at: str = ""
    """"file:line" where forward itself moves it or reads only its metadata; else ""."""
    is_cast_on_use: bool = False
    """Whether every use in forward casts it."""
    written_at: str = ""
    """"file:line" of the first write outside the constructor, "" if none was found.

    By the module's own methods, those of its parents, or a function of their files that is given
    the module.
    """
    alias_of: str = ""
    """Key of the registered or saved tensor whose storage it shares."""
    is_statistic: bool = False
    """Buffer that training changes: of a normalisation layer, or one with `written_at`."""
    blank_fill: str = ""
    """What all elements are, "zeros" or "ones", if they look like a value that is yet to come.

    Also "-1", "infinities or NaN" and "the largest numbers of its dtype"; "" if the elements
    differ, have another value, or are not available.
    """
    is_computed_from_arguments: bool = False
    """Whether the source shows that arguments of the constructor decide the value.

    Arguments that are no more than sizes do not count. False if the source does not show it.
    """
    fingerprint: str = ""
    """Content fingerprint of the elements, "" if they have no real values or are too large."""
    has_integer_values: bool = False
    """Whether all elements are integers, booleans or infinities: masks, ids.

    Such values are the same on every machine, which computed fractions are not. False for
    parameters.
    """
    preview: Preview | None = None
    """For the first 48 saved and 48 unsaved tensors with real values; never for parameters."""
    half_precision_fingerprints: Mapping[str, str] = {}
    """For float32 buffers: half-precision dtype -> fingerprint after the cast, if it rounds."""

    @property
    def key(self) -> str:
        return self.tensor.key

    @property
    def is_blank(self) -> bool:
        """Whether the constructor fills it with one value that says nothing, to be written later.

        A value that is computed from the constructor's arguments says something, whatever it is.
        """
        return bool(self.blank_fill) and not self.is_computed_from_arguments

    @property
    def is_recomputable(self) -> bool:
        """Whether the constructor makes the right value again, so that a file need not have it.

        It is the same on every construction, no code outside the constructor is seen to write it,
        and it is not blank. Else the value waits for data: from training, calibration or a loader.
        """
        return (
            self.constancy is Constancy.CONSTANT
            and not self.is_statistic
            and not self.written_at
            and not self.is_blank
        )

    @property
    def waits_for_data(self) -> bool:
        """Whether something shows that the constructor does not make the right value again.

        Neither this nor `is_recomputable` is true of a value of which nothing is known: that of a
        live module whose constructor's arguments are not known.
        """
        is_known = self.constancy is not Constancy.UNKNOWN
        return not self.is_recomputable and (is_known or self.is_statistic or bool(self.written_at))


class ComputedParameter(Struct, frozen=True):
    """A parameter that torch's own code computes in the forward pass, and nothing else changes."""

    by: str
    """Qualified name of what computes it: "torch.nn.utils.weight_norm.WeightNorm", or
    "torch.nn.utils.prune.BasePruningMethod" for every pruning method."""
    dim: int = 0
    """`dim` of a norm; -1 for the norm over the whole tensor (dim=None)."""


class ModuleClass(Struct, frozen=True):
    """Class facts of one sub-module of a live module."""

    name: str
    """Qualified name of its class."""
    version: int | None
    """`_version` of the class; None without one."""
    has_custom_load: bool
    """Whether a class other than torch's overrides `_load_from_state_dict`, or hooks it."""
    is_auxiliary: bool
    """A loss, a metric, or a perceptual-loss network: its keys are not part of the model."""
    attributes: frozenset[str]
    """Names in its `__dict__`, registered names included."""
    loading_class: str = ""
    """Qualified name of the class that defines its `_load_from_state_dict`; "" if unknown."""
    spectral_norm_dim: int = 0
    """The dimension that torch's spectral_norm takes for this layer by itself."""
    computed_parameters: Mapping[str, ComputedParameter] = {}
    """By the parameter's name in this module: "weight"."""


class ModuleInfo(Struct, frozen=True, dict=True):
    """All state of a live module, saved and unsaved."""

    target: str
    """Import target: "samples.attention:CausalAttention"."""
    tensors: Mapping[str, ModuleTensor]
    """By key, in natural order."""
    non_tensors: Mapping[str, str] = {}
    """Keys of state_dict() without a tensor (extra state) -> short description of the value."""
    none_buffers: Mapping[str, str] = {}
    """Key of a buffer registered as None -> class of its owner."""
    none_buffer_writes: Mapping[str, str] = {}
    """Key of a persistent buffer that is None -> "file:line" of its assignment, "" if none."""
    modules: Mapping[str, ModuleClass] = {}
    """By prefix; "" is the root module."""
    own_load_error: str = ""
    """What loading its own state_dict() into another instance raises; "" if it loads."""
    hidden_modules: Mapping[str, str] = {}
    """Modules that `named_modules()` does not list: path -> class."""
    skipped: tuple[Skipped, ...] = ()
    submodule: str = ""
    """Path of the only sub-module that is described, "" for the whole module."""
    loader: str = "torch"
    """Name in ckptool.loaders of the framework that loads it; "torch" is `load_state_dict`."""
    state_place: str | None = None
    """Place in a file that its framework loads, "" for the top level, None if any may be meant."""
    uninitialized_buffers: Mapping[str, str] = {}
    """Key of a buffer that its framework's loader leaves uninitialized -> that loader's call."""
    arguments: Mapping[str, str] = {}
    """Constructor arguments that the user gave, as Python literals; "..." for another object.

    Those that are taken from a checkpoint are `file_arguments`, or "@place".
    """
    file_arguments: tuple[str, ...] = ()
    """Constructor arguments that were taken from the checkpoint because they fit."""
    folder: str = ""
    """Path of the framework's folder whose configuration names the module; "" for a named one."""

    @property
    def label(self) -> str:
        """The target, with the sub-module that alone is meant."""
        return f"{self.target}, submodule {self.submodule}" if self.submodule else self.target

    @cached_property
    def saved_tensors(self) -> Mapping[str, ModuleTensor]:
        return {
            key: module_tensor
            for key, module_tensor in self.tensors.items()
            if module_tensor.is_saved
        }

    @cached_property
    def unsaved_tensors(self) -> Mapping[str, ModuleTensor]:
        return {
            key: module_tensor
            for key, module_tensor in self.tensors.items()
            if not module_tensor.is_saved
        }
