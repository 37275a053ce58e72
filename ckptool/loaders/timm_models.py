"""timm: what load_pretrained does with a state, asked of it with tensors on meta."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from ckptool.compare.framework.loading_info import LoadingInfo
from ckptool.errors import ModuleError
from ckptool.loaders.build_limits import build_within_limits
from ckptool.loaders.config_checks import read_model_config
from ckptool.loaders.offline import run_offline
from ckptool.locations import Location
from ckptool.phrases import cut_middle

if TYPE_CHECKING:
    from torch import nn

PACKAGES: Final = ("timm", "torchvision")
LOADER_CALL: Final = "load_pretrained()"
_PLACE_FIELDS: Final = frozenset(
    {"url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load"}
)
"""Fields of a configuration that say where weights are."""
_CONFIG_NAME: Final = "config.json"


def build_model(folder: Location, class_name: str) -> "nn.Module":
    """Build the architecture that config.json names, with initial values.

    Raises:
        ModuleError: the configuration is refused, or names no architecture of timm.
    """
    fields = read_model_config(folder, _CONFIG_NAME)
    with run_offline():
        import timm

        if not class_name.isidentifier() or not timm.is_model(class_name):
            reason = f"{_CONFIG_NAME} names {cut_middle(repr(class_name))}, but timm"
            version = timm.__version__
            raise ModuleError(str(folder), f"{reason} {version} has no such architecture")
        arguments = fields.get("model_args")
        arguments = dict(arguments) if isinstance(arguments, dict) else {}
        for name in ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path"):
            arguments.pop(name, None)
        overlay = _select_overlay(fields)
        if "num_classes" in overlay:
            arguments.setdefault("num_classes", overlay["num_classes"])

    def build() -> "nn.Module":
        module: nn.Module = timm.create_model(
            class_name, pretrained=False, pretrained_cfg_overlay=overlay, **arguments
        )
        return module

    return build_within_limits(build, folder)


def accepts_module(module: "nn.Module") -> bool:
    """Whether timm built `module`: then it has its configuration."""
    return hasattr(module, "pretrained_cfg") and type(module).__module__.startswith("timm.")


def load_state(module: "nn.Module", state: Mapping[str, Any]) -> "tuple[nn.Module, LoadingInfo]":
    """Load a state by load_pretrained, with the architecture's filter, into a copy of `module`."""
    import copy

    from ckptool.loaders.tensor_trace import TensorTrace
    from ckptool.modules.move_probe import copy_to_meta
    from ckptool.modules.walk import walk_module

    is_on_meta = all(tensor.is_meta for tensor in state.values())
    trace = TensorTrace(state, 0)
    results: list[Any] = []
    with run_offline():
        from timm.models import load_pretrained

        loaded: Any = (
            copy_to_meta(module, walk_module(module)) if is_on_meta else copy.deepcopy(module)
        )
        loaded = loaded.to("meta") if is_on_meta else loaded
        cfg = {**dict(_list_fields(loaded.pretrained_cfg)), "state_dict": dict(state)}
        hook = loaded.register_load_state_dict_post_hook(lambda _, keys: results.append(keys))
        try:
            with trace:
                load_pretrained(
                    loaded,
                    pretrained_cfg=cfg,
                    num_classes=getattr(loaded, "num_classes", 1000),
                    in_chans=getattr(loaded, "in_chans", 3),
                    filter_fn=_find_filter(loaded),
                    strict=False,
                )
        finally:
            hook.remove()
    missing_keys, unexpected_keys = results[-1].missing_keys, results[-1].unexpected_keys
    conversions = trace.list_conversions(loaded.state_dict(keep_vars=True))
    overwritten_keys = trace.list_overwritten(conversions)
    known_keys = {key for conversion in conversions for key in conversion.file_keys}
    known_keys |= overwritten_keys.keys()
    return loaded, LoadingInfo(
        loader=LOADER_CALL,
        is_strict=True,
        missing_keys=tuple(sorted(missing_keys)),
        unexpected_keys=tuple(sorted(unexpected_keys)),
        conversions=tuple(conversion for conversion in conversions if conversion.operation),
        ignored_keys=tuple(k for k in state if k not in {*known_keys, *unexpected_keys}),
        overwritten_keys=overwritten_keys,
    )


def make_inputs(module: "nn.Module") -> Mapping[str, Any]:
    """Return an image of the configured size."""
    import torch

    size = dict(_list_fields(module.pretrained_cfg)).get("input_size", (3, 224, 224))
    return {"x": torch.rand(1, *size, generator=torch.Generator().manual_seed(0))}


def _select_overlay(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the folder says of its weights, without the places where others would be."""
    pretrained_cfg = fields.get("pretrained_cfg")
    pretrained_cfg = pretrained_cfg if isinstance(pretrained_cfg, dict) else {}
    overlay = {k: v for k, v in pretrained_cfg.items() if k not in _PLACE_FIELDS}
    if isinstance(fields.get("num_classes"), int):
        overlay["num_classes"] = fields["num_classes"]
    return overlay


def _find_filter(module: "nn.Module") -> Any:
    """Return the function by which the architecture's file converts old states; None without."""
    return getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)


def _list_fields(pretrained_cfg: Any) -> Any:
    """Return the fields of timm's configuration, a dict or a dataclass."""
    if isinstance(pretrained_cfg, dict):
        return pretrained_cfg.items()
    return vars(pretrained_cfg).items()
