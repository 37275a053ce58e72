"""Lightning: what load_from_checkpoint does with a state, where that is more than load_state_dict.

A LightningModule may change the state in on_load_checkpoint(), and may turn strict loading off. Any
other is loaded by load_state_dict alone.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from ckptool.compare.framework.loading_info import LoadingInfo
from ckptool.loaders.mismatches import drop_mismatches
from ckptool.locations import Location
from ckptool.modules.lightning import find_lightning_class, overrides_hook

if TYPE_CHECKING:
    from torch import nn

PACKAGES: Final = ()
"""None: whoever gives a LightningModule has Lightning."""
LOADER_CALL: Final = "load_from_checkpoint()"
STATE_PLACE: Final = "state_dict"
"""Place of the state that it loads, whatever else matches: averages are somewhere else."""


def build_model(folder: Location, class_name: str) -> "nn.Module":
    """Build nothing: Lightning has no folders that describe themselves."""
    raise NotImplementedError


def accepts_module(module: "nn.Module") -> bool:
    """Whether load_from_checkpoint does more with `module` than load_state_dict."""
    if find_lightning_class(type(module)) is None:
        return False
    is_strict: bool = module.strict_loading  # type: ignore[assignment]
    return not is_strict or overrides_hook(module, "on_load_checkpoint")


def load_state(module: "nn.Module", state: Mapping[str, Any]) -> "tuple[nn.Module, LoadingInfo]":
    """Load a state as load_from_checkpoint does into a copy of `module`."""
    import copy

    from ckptool.loaders.tensor_trace import TensorTrace
    from ckptool.modules.move_probe import copy_to_meta
    from ckptool.modules.walk import walk_module

    is_on_meta = all(tensor.is_meta for tensor in state.values())
    loaded: Any = copy_to_meta(module, walk_module(module)) if is_on_meta else copy.deepcopy(module)
    loaded = loaded.to("meta") if is_on_meta else loaded
    trace = TensorTrace(state, 0)
    checkpoint = _LightningCheckpoint({STATE_PLACE: dict(state)})
    with trace:
        loaded.on_load_checkpoint(checkpoint)
        with drop_mismatches(loaded) as mismatched_shapes:
            result = loaded.load_state_dict(checkpoint[STATE_PLACE], strict=False)
    own_tensors = loaded.state_dict(keep_vars=True)
    conversions = trace.list_conversions(own_tensors)
    used_keys = {key for conversion in conversions for key in conversion.file_keys}
    missing_keys = {*result.missing_keys} - mismatched_shapes.keys()
    # What a class leaves out of its own state_dict() is not missing where it is not asked for.
    missing_keys -= set() if loaded.strict_loading else {*missing_keys} - own_tensors.keys()
    overwritten_keys = trace.list_overwritten(conversions)
    known_keys = {*used_keys, *result.unexpected_keys, *mismatched_shapes, *overwritten_keys}
    return loaded, LoadingInfo(
        loader=LOADER_CALL,
        is_strict=loaded.strict_loading,
        missing_keys=tuple(sorted(missing_keys)),
        unexpected_keys=tuple(sorted(result.unexpected_keys)),
        mismatched_shapes=mismatched_shapes,
        conversions=tuple(conversion for conversion in conversions if conversion.operation),
        ignored_keys=tuple(k for k in state if not mismatched_shapes and k not in known_keys),
        overwritten_keys=overwritten_keys,
    )


def make_inputs(module: "nn.Module") -> Mapping[str, Any]:
    """Return no inputs: `example_input_array` of the module is looked at for all modules."""
    del module
    return {}


class _LightningCheckpoint(dict[str, Any]):
    """A checkpoint with the state alone; code that asks for more cannot be answered.

    NotImplementedError has the load reported as not checked, instead of as one that fails.
    """

    def __missing__(self, key: str) -> Any:
        reason = f"on_load_checkpoint() asks for `{key}`, and is only given the state_dict"
        raise NotImplementedError(reason)

    def get(self, key: str, default: Any = None) -> Any:  # noqa: ARG002
        """Return the entry; a default would not be what the file has."""
        return self[key]

    def pop(self, key: str, *_: Any) -> Any:
        """Take the entry out."""
        value = self[key]
        del self[key]
        return value

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or bool(self[str(key)])
