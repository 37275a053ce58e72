"""Structs of quantised weights: schemes, the tensors that one is stored in, and what they say."""

from collections.abc import Callable, Mapping
from typing import Final

from msgspec import Struct

from ckptool.model import TensorInfo, join_key

NAME: Final = "{name}"
"""Stands for the name of the weight within its layer in a part's name: "weight"."""

Parts = Mapping[str, TensorInfo]
"""Part of a scheme, as the scheme writes it -> its tensor."""


class WeightFormat(Struct, frozen=True):
    """How the elements of one quantised weight are stored, as far as its tensors say."""

    bits: int = 0
    """Bits of one element; 0 if the tensors do not say."""
    group_size: int = 0
    """Elements of a row that share a scale; 0 if scales are shared otherwise, or not known."""
    scaling: str = ""
    """What shares a scale: "groups of 128", "one scale per row"; "" if not known."""
    shape: tuple[int, ...] | None = None
    """Shape of the weight before quantisation; None if the tensors do not say."""
    numel: int = 0
    """Elements of the weight before quantisation; 0 if the tensors do not say."""
    misfit: str = ""
    """Why the tensors cannot belong to one weight, as a clause; "" if they fit."""

    @property
    def phrase(self) -> str:
        """Bits and scaling in words: "4 bits, groups of 128"; "" if nothing is known."""
        bits = f"{self.bits} bit{'' if self.bits == 1 else 's'}" if self.bits else ""
        return ", ".join(filter(None, (bits, self.scaling)))


class QuantizationScheme(Struct, frozen=True):
    """The layout in which a library stores quantised weights.

    A part is the name of a tensor within its layer. `{name}` in it stands for the name of the
    weight, which is "weight" where no part says it; "a|b" is one of two.
    """

    name: str
    """As messages name it; the same name is the same scheme."""
    remedy: str
    """How to load such weights, as a clause of CK219's fix."""
    required: tuple[str, ...] = ()
    """Parts without which the weight cannot be computed."""
    optional: tuple[str, ...] = ()
    """Further tensors of the layer that belong to the weight: scales of activations, settings."""
    markers: tuple[str, ...] = ()
    """Parts whose name alone shows that a layer of this scheme was meant."""
    dtypes: Mapping[str, frozenset[str]] = {}
    """Part -> dtypes that it has in this scheme; any dtype where it is not named."""
    describe_weight: Callable[[Parts], WeightFormat] | None = None
    """Complete parts -> format of the weight; None if the tensors are not interpreted."""
    claims: Callable[[Parts], bool] | None = None
    """Whether complete parts are of this scheme and not of one with the same names; None: they
    are."""
    methods: tuple[str, ...] = ()
    """Names of the scheme in `quant_method` of a config.json; () if no library writes one."""
    file_keys: tuple[str, ...] = ()
    """Last segments of keys beside the layers that a file of this scheme has: "scaled_fp8"."""
    varies_in_settings: bool = False
    """Whether layers may differ though their parts have the same shapes: in what is read of them"""
    covers_layer: bool = False
    """Whether all tensors of the layer are packed into its parts: the bias, too."""

    @property
    def required_parts(self) -> tuple[str, ...]:
        """The required parts, alternatives one by one."""
        return tuple(part for choice in self.required for part in choice.split("|"))

    @property
    def parts(self) -> tuple[str, ...]:
        return (*self.required_parts, *self.optional)


class QuantizedLayer(Struct, frozen=True):
    """One quantised weight: its scheme, and the keys of its tensors."""

    scheme: QuantizationScheme
    prefix: str
    """Dotted place of the layer, "" for the top level."""
    name: str
    """Name of the weight within the layer: "weight"."""
    keys: Mapping[str, str]
    """Part of the scheme -> key of its tensor."""
    format: WeightFormat = WeightFormat()
    lacking_keys: tuple[str, ...] = ()
    """Keys of required tensors that are not there; of alternatives the first."""
    is_probable: bool = False
    """Whether it may as well be a weight that was only cast: nothing of the same name has more."""

    @property
    def weight_key(self) -> str:
        """Key of the weight before quantisation."""
        return join_key(self.prefix, self.name)

    @property
    def is_complete(self) -> bool:
        return not self.lacking_keys and not self.format.misfit

    @property
    def identity(self) -> tuple[str, str, str]:
        return (self.scheme.name, self.prefix, self.name)


class QuantizationInfo(Struct, frozen=True):
    """The quantised weights of a file or module."""

    layers: tuple[QuantizedLayer, ...] = ()
    """In the order of the keys."""
    side_keys: frozenset[str] = frozenset()
    """Keys outside of the layers that belong to one of their schemes."""


def format_part_key(part: str, prefix: str, name: str) -> str:
    """Return the key of a part of the weight `name` in the layer at `prefix`."""
    return join_key(prefix, part.replace(NAME, name))
