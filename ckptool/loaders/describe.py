"""ModuleInfo of a framework's module -> with its loader; StateDict x module -> LoadingInfo."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from ckptool.compare.framework.loading_info import LoadingInfo
from ckptool.compare.renames import PrefixRewrite, rank_rewrites
from ckptool.errors import ModuleError
from ckptool.loaders import lightning_modules
from ckptool.loaders.diffusers_models import is_pipeline
from ckptool.loaders.model_folder import LOADERS_BY_NAME
from ckptool.loaders.registry import FrameworkLoader, get_loader, is_installed
from ckptool.model import ModuleInfo, Skipped, StateDict
from ckptool.modules.import_target import ModuleSpec
from ckptool.modules.lightning import find_lightning_class
from ckptool.modules.user_code import UserCodeError, user_code

if TYPE_CHECKING:
    from torch import nn

_META_BUILDERS: Final = ("transformers",)
"""Frameworks whose only loader builds on meta: what it does not fill has no value."""
_META_MESSAGES: Final = ("meta tensor", "on device meta", "'meta'", "Meta", "no data")
_MAX_REWRITES: Final = 3
"""Rewrites of prefixes that a loader is asked about."""
UNINITIALIZED_CHECK: Final = "buffers after the framework's load"


def describe_for_loader(
    module_info: ModuleInfo, module: "nn.Module", spec: ModuleSpec
) -> ModuleInfo:
    """Return the description with the loader of the module's framework.

    With a framework whose loader builds on meta, the buffers that it leaves uninitialized are
    found as well, also where the module is loaded by `load_state_dict` here.

    Args:
        module_info: description of `module`.
        module: an instance of the module.
        spec: its label, and the framework to load it: None if nothing says which, "torch" if the
            user wants `load_state_dict`, for which a module is not built on meta.

    Raises:
        ModuleError: the framework does not load modules of this class, or is not installed.
    """
    module_info = replace(module_info, target=spec.label or module_info.target)
    loader = _choose_loader(module, spec)
    place = "" if loader in LOADERS_BY_NAME else None
    place = lightning_modules.STATE_PLACE if find_lightning_class(type(module)) else place
    module_info = replace(module_info, loader=loader, state_place=place)
    if spec.loader == "torch":
        return module_info
    builder = _find_meta_builder(module)
    if builder and is_installed(builder):
        return _add_uninitialized(module_info, module, get_loader(builder))
    return module_info


def _find_meta_builder(module: "nn.Module") -> str:
    """Return the framework whose only loader builds the module on meta, "" if there is another."""
    if is_pipeline(module):
        return "diffusers"
    return next((name for name in _META_BUILDERS if _is_class_of(module, name)), "")


def _choose_loader(module: "nn.Module", spec: ModuleSpec) -> str:
    """Return the framework that loads the module, "torch" for `load_state_dict`."""
    if spec.loader is None and lightning_modules.accepts_module(module):
        return "lightning"
    if spec.loader in {None, "torch"} or not (spec.is_loader_required or is_installed(spec.loader)):
        return "torch"
    if get_loader(spec.loader).accepts_module(module):
        return spec.loader
    if not spec.is_loader_required:
        return "torch"
    name = type(module).__qualname__
    raise ModuleError(spec.label or spec.target, f"is a {name}, which {spec.loader} does not load")


def load_with_framework(
    loader: str, module: "nn.Module", state: StateDict
) -> LoadingInfo | Skipped:
    """Return what the framework's loader does with a state, whose tensors are given on meta.

    Skipped if it cannot be asked: a tensor that is no dense one, or code that reads values.
    """
    tensors = _make_meta_state(state)
    if isinstance(tensors, Skipped):
        return tensors
    return _ask_loader(get_loader(loader), module, tensors)


def find_rewrite(
    loader: str, module: "nn.Module", state: StateDict, info: LoadingInfo
) -> PrefixRewrite | None:
    """Return the rewrite of prefixes with which the loader finds more keys; None if none helps.

    The loader is asked about each that is likely: what it expects is not always a key of its
    module.

    Args:
        loader: name of the framework.
        module: an instance of the module.
        state: the state as the file has it.
        info: what the loader does with it.
    """
    lost_keys = [*(info.file_names.get(k, k) for k in info.unexpected_keys), *info.ignored_keys]
    missing_names = info.missing_names or info.missing_keys
    if info.error or not (lost_keys and missing_names):
        return None
    for candidate in rank_rewrites({*missing_names}, lost_keys)[:_MAX_REWRITES]:
        names = {key: candidate.rewrite_key(key) for key in lost_keys}
        tensors = {names.get(key, key): tensor for key, tensor in state.tensors.items()}
        if len(tensors) < len(state.tensors):
            continue
        rewritten = load_with_framework(loader, module, replace(state, tensors=tensors))
        if isinstance(rewritten, LoadingInfo) and (result := _pair_keys(info, rewritten, names)):
            return replace(candidate, key_map=result[0], tied_keys=result[1])
    return None


def _pair_keys(
    info: LoadingInfo, rewritten: LoadingInfo, names: Mapping[str, str]
) -> tuple[dict[str, str], tuple[str, ...]] | None:
    """Return what a rewrite resolves: key of the file -> of the module, and other missing keys.

    None if the loader takes no more keys with it, or other shapes.
    """
    found_keys = {*info.missing_keys} - {*rewritten.missing_keys}
    if (
        rewritten.error
        or not found_keys
        or len(rewritten.mismatched_shapes) > len(info.mismatched_shapes)
    ):
        return None
    module_keys = dict(zip(info.missing_names, info.missing_keys, strict=False))
    module_keys |= {file_key: c.key for c in rewritten.conversions for file_key in c.file_keys}
    still_lost = {rewritten.file_names.get(k, k) for k in rewritten.unexpected_keys}
    still_lost |= {*rewritten.ignored_keys}
    key_map = {k: module_keys.get(new, new) for k, new in names.items() if new not in still_lost}
    return key_map, tuple(sorted(found_keys - {*key_map.values()}))


def _ask_loader(
    loader: FrameworkLoader, module: "nn.Module", tensors: Mapping[str, Any]
) -> LoadingInfo | Skipped:
    try:
        with user_code():
            return loader.load_state(module, tensors)[1]
    except UserCodeError as caught:
        error = caught.error
        text = str(error)
        is_ours = isinstance(error, ImportError | NotImplementedError | AttributeError)
        if is_ours or any(part in text for part in _META_MESSAGES):
            return Skipped("the framework's loader", str(caught))
        return LoadingInfo(getattr(loader, "LOADER_CALL", "the loader"), error=str(caught))


def _is_class_of(module: "nn.Module", package: str) -> bool:
    """Whether a class of the module is from `package`, without importing it."""
    return any(base.__module__.partition(".")[0] == package for base in type(module).__mro__)


def _add_uninitialized(
    module_info: ModuleInfo, module: "nn.Module", loader: FrameworkLoader
) -> ModuleInfo:
    if not loader.accepts_module(module):
        return module_info
    try:
        state = {key: tensor.to("meta") for key, tensor in module.state_dict().items()}
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        skipped = Skipped(UNINITIALIZED_CHECK, str(error))
        return replace(module_info, skipped=(*module_info.skipped, skipped))
    report = _ask_loader(loader, module, state)
    if isinstance(report, Skipped) or report.error:
        reason = report.reason if isinstance(report, Skipped) else report.error
        skipped = Skipped(UNINITIALIZED_CHECK, reason)
        return replace(module_info, skipped=(*module_info.skipped, skipped))
    return replace(
        module_info,
        uninitialized_buffers=dict.fromkeys(report.uninitialized_buffers, report.loader),
    )


def _make_meta_state(state: StateDict) -> dict[str, Any] | Skipped:
    import torch

    tensors: dict[str, Any] = {}
    for key, info in state.tensors.items():
        dtype = getattr(torch, info.dtype, None)
        if info.layout not in {"strided", "chunked"} or not isinstance(dtype, torch.dtype):
            return Skipped("the framework's loader", f"`{key}` is {info.layout} {info.dtype}")
        tensors[key] = torch.empty(info.shape, dtype=dtype, device="meta")
    return tensors
