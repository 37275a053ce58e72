"""LoadingInfo: what a framework's own loader does with a state."""

from collections.abc import Mapping

from msgspec import Struct

from ckptool.compare.renames import PrefixRewrite


class TensorConversion(Struct, frozen=True):
    """How one tensor of the module is made of tensors of the file, where it is no copy by name."""

    key: str
    """Key of the module."""
    file_keys: tuple[str, ...]
    operation: str
    """"renamed", or what is done: "stacked, concatenated"."""


class LoadingInfo(Struct, frozen=True):
    """What a framework's loader does with a state; keys are named as the framework names them."""

    loader: str
    """The call, as users write it: "from_pretrained()"."""
    missing_keys: tuple[str, ...] = ()
    """Keys of the module that the framework initializes itself."""
    unexpected_keys: tuple[str, ...] = ()
    """Keys that are dropped, under the names that the framework's report gives them."""
    mismatched_shapes: Mapping[str, tuple[int, ...]] = {}
    """Key of the module -> shape in the file, where it is another one."""
    conversions: tuple[TensorConversion, ...] = ()
    ignored_keys: tuple[str, ...] = ()
    """Keys of the file that are dropped, and that the framework's report leaves out."""
    overwritten_keys: Mapping[str, str] = {}
    """Key of the file that is loaded into a tensor -> the key that is loaded into the same tensor
    after it: names that are tied in the module."""
    uninitialized_buffers: tuple[str, ...] = ()
    """Buffers that hold whatever was in memory after the load."""
    file_names: Mapping[str, str] = {}
    """Unexpected key -> key in the file, where that is another one."""
    variant: str = ""
    """Variant that all files are of ("fp16"), which the call has to ask for; "" for none."""
    is_strict: bool = False
    """Whether the loader raises where a key is missing or unexpected."""
    scope_keys: tuple[str, ...] | None = None
    """Keys of the module that the file is for, as an adapter's on its base; None for all."""
    restored_paths: tuple[str, ...] = ()
    """Paths of tensors that no state_dict has, and that the loader fills from the file."""
    missing_names: tuple[str, ...] = ()
    """Names that a file has for `missing_keys`, where those are others; () for the keys."""
    rewrite: PrefixRewrite | None = None
    """Rewrite of the file's keys with which the loader takes more of them: it was tried."""
    notes: tuple[str, ...] = ()
    """What the framework's configuration says, for people."""
    error: str = ""
    """What the loader raises, "" if it returns a module."""

    @property
    def is_whole(self) -> bool:
        """Whether each tensor of module and file finds its counterpart."""
        has_differences = self.missing_keys or self.unexpected_keys or self.mismatched_shapes
        return not (self.error or has_differences)
