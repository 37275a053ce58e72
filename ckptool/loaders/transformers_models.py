"""transformers: what from_pretrained does with a state, asked of it with tensors on meta."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace

from ckptool.compare.framework.loading_info import LoadingInfo
from ckptool.errors import ModuleError
from ckptool.formats.files.source import path_exists
from ckptool.loaders.build_limits import build_within_limits
from ckptool.loaders.config_checks import (
    REMOTE_CODE_FIELD,
    find_model_class,
    read_model_config,
)
from ckptool.loaders.model_folder import PIPELINE_CONFIG
from ckptool.loaders.offline import run_offline
from ckptool.loaders.own_classes import load_config
from ckptool.locations import Location
from ckptool.model import natural_sort_key
from ckptool.phrases import cut_middle, join_limited, quote_code

if TYPE_CHECKING:
    from torch import nn

    from ckptool.loaders.tensor_trace import TensorTrace

PACKAGES: Final = ("transformers", "accelerate")
LOADER_CALL: Final = "from_pretrained()"
_FILLS: Final = (0, 1)
"""What uninitialized memory holds in two loads: a buffer that differs was never filled."""
_CONFIG_NAME: Final = "config.json"


def build_model(folder: Location, class_name: str) -> "nn.Module":
    """Build the class that config.json names, with initial values.

    Raises:
        ModuleError: the configuration is refused, or names no class of transformers.
    """
    with run_offline():
        import transformers

        cls = _find_component_class(folder, class_name)
        is_own_class = not hasattr(transformers, class_name)
    if cls is None:
        # Read where there is a network; it refuses code in the folder that names the class.
        config_fields = read_model_config(folder, _CONFIG_NAME) if is_own_class else {}
        with run_offline():
            cls = _find_class(class_name, config_fields, str(folder))
    return build_class(folder, cls)


def build_class(folder: Location, cls: Any) -> "nn.Module":
    """Build a PreTrainedModel as the configuration in its folder says.

    Classes of the folder's own are left alone, as from_pretrained() of `cls` does.

    Raises:
        ModuleError: the configuration is refused.
    """
    config_fields = read_model_config(folder, _CONFIG_NAME, REMOTE_CODE_FIELD)
    with run_offline():
        config = load_config(cls.config_class, config_fields)
    return build_within_limits(lambda: cls(config), folder)


def accepts_module(module: "nn.Module") -> bool:
    """Whether `module` is a PreTrainedModel, whose only loader is from_pretrained."""
    with run_offline():
        from transformers import PreTrainedModel

    return isinstance(module, PreTrainedModel)


def load_state(module: "nn.Module", state: Mapping[str, Any]) -> "tuple[nn.Module, LoadingInfo]":
    """Load a state by from_pretrained into a new instance of the module's class."""
    if all(getattr(tensor, "is_meta", False) for tensor in state.values()):
        return _report_load(module, state)
    with run_offline(), _collecting_conversion_errors() as conversion_errors:
        loaded, info = _call_loader(module, state, None)
        sources = _find_sources(loaded, state, conversion_errors)
    report = _read_loading_info(info)
    error = report.error or _describe_conversion_errors(conversion_errors, sources)
    return loaded, replace(report, error=error)


def make_inputs(module: "nn.Module") -> Mapping[str, Any]:
    """Return inputs of forward of the module's main input, as its configuration allows."""
    from ckptool.loaders.transformers_inputs import make_model_inputs

    return make_model_inputs(module)


def _report_load(module: "nn.Module", state: Mapping[str, Any]) -> "tuple[nn.Module, LoadingInfo]":
    with run_offline(), _without_placing():
        unsaved_buffers = _list_unsaved_buffers(module)
        first = _load_traced(module, state, unsaved_buffers, _FILLS[0])
        missing_buffers = {*first.report.missing_keys} & {
            name for name, _ in module.named_buffers()
        }
        buffers = [*unsaved_buffers, *sorted(missing_buffers)]
        if missing_buffers:
            first = _load_traced(module, state, buffers, _FILLS[0])
        second = _load_traced(module, state, buffers, _FILLS[1])
        report, loaded = first.report, first.module
        renamed_keys = {*report.unexpected_keys, *first.conversion_errors} - state.keys()
        sources = _find_sources(loaded, state, renamed_keys)
    file_names = {key: sources[key][0] for key in report.unexpected_keys if key in sources}
    conversions = first.trace.list_conversions(loaded.state_dict(keep_vars=True))
    used_keys = {key for conversion in conversions for key in conversion.file_keys}
    used_keys |= {file_names.get(key, key) for key in report.unexpected_keys}
    used_keys |= {key for target in first.conversion_errors for key in sources.get(target, ())}
    return loaded, replace(
        report,
        error=report.error or _describe_conversion_errors(first.conversion_errors, sources),
        conversions=tuple(conversion for conversion in conversions if conversion.operation),
        ignored_keys=tuple(
            key for key in state if key not in used_keys and key not in report.mismatched_shapes
        ),
        uninitialized_buffers=tuple(_iter_uninitialized(loaded, second.module)),
        file_names=file_names,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _TracedLoad:
    """A module loaded on meta, with the report and the record of its tensors' origins."""

    module: Any
    report: LoadingInfo
    trace: "TensorTrace"
    conversion_errors: Mapping[str, str]
    """Key of the module -> what converting the file's tensors raised, as transformers logs it."""


def _load_traced(
    module: Any, state: Mapping[str, Any], real_buffers: Sequence[str], fill: int
) -> _TracedLoad:
    """Load on meta, but for `real_buffers`, whose memory is filled with `fill` before."""
    from ckptool.loaders.tensor_trace import TensorTrace
    from ckptool.modules.build import preserve_random_state, seed_generators

    trace = TensorTrace(state, fill)
    device_map = {"": "meta", **dict.fromkeys(real_buffers, "cpu")}
    with preserve_random_state():
        seed_generators(0)
        with trace, _collecting_conversion_errors() as conversion_errors:
            loaded, info = _call_loader(module, state, device_map)
    return _TracedLoad(loaded, _read_loading_info(info), trace, conversion_errors)


def _call_loader(module: Any, state: Mapping[str, Any], device_map: Any) -> tuple[Any, Any]:
    with without_progress_bars():
        loaded, info = type(module).from_pretrained(
            None,
            config=module.config,
            state_dict=dict(state),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            local_files_only=True,
            device_map=device_map,
        )
    return loaded, info


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Have transformers draw no progress bars, and put its setting back on exit."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def _read_loading_info(info: Mapping[str, Any]) -> LoadingInfo:
    return LoadingInfo(
        loader=LOADER_CALL,
        missing_keys=tuple(sorted(info["missing_keys"])),
        unexpected_keys=tuple(sorted(info["unexpected_keys"])),
        mismatched_shapes={
            key: tuple(file_shape) for key, file_shape, _ in sorted(info["mismatched_keys"])
        },
        error="; ".join(info["error_msgs"]),
    )


def _list_unsaved_buffers(module: "nn.Module") -> list[str]:
    saved_names = module.state_dict().keys()
    names = (name for name, _ in module.named_buffers(remove_duplicate=False))
    return [name for name in names if name not in saved_names]


@contextmanager
def _without_placing() -> Iterator[None]:
    """Leave out the step after the load that puts weights and buffers on several devices."""
    from transformers import modeling_utils

    placing = modeling_utils.accelerate_dispatch
    modeling_utils.accelerate_dispatch = lambda *_, **__: None
    try:
        yield
    finally:
        modeling_utils.accelerate_dispatch = placing


def _iter_uninitialized(first: "nn.Module", second: "nn.Module") -> Iterator[str]:
    """Yield the buffers whose elements depend on what memory held before."""
    import torch

    others = dict(second.named_buffers(remove_duplicate=False))
    for name, buffer in first.named_buffers(remove_duplicate=False):
        other = others[name]
        if not (buffer.is_meta or other.is_meta or torch.equal(buffer, other)):
            is_nan = buffer.is_floating_point() and torch.equal(buffer.isnan(), other.isnan())
            if not (is_nan and torch.equal(buffer.nan_to_num(), other.nan_to_num())):
                yield name


@contextmanager
def _collecting_conversion_errors() -> Iterator[dict[str, str]]:
    """Collect the conversions that fail, where from_pretrained would log them and then raise."""
    from transformers import modeling_utils

    log_report = modeling_utils.log_state_dict_report
    conversion_errors: dict[str, str] = {}

    def collect(*_: Any, loading_info: Any, **__: Any) -> None:
        conversion_errors.update(loading_info.conversion_errors)
        if loading_info.error_msgs:
            raise RuntimeError("; ".join(loading_info.error_msgs))

    modeling_utils.log_state_dict_report = collect
    try:
        yield conversion_errors
    finally:
        modeling_utils.log_state_dict_report = log_report


def _describe_conversion_errors(
    conversion_errors: Mapping[str, str], sources: Mapping[str, Sequence[str]]
) -> str:
    """Return a sentence with the tensors that could not be converted; "" if there are none.

    Args:
        conversion_errors: key of the module -> what transformers logs: a traceback, the exception
            in the line before the last, and in the last one where it was.
        sources: key of the module -> keys of the file that it is made of.
    """
    if not conversion_errors:
        return ""
    key, text = min(conversion_errors.items(), key=lambda item: natural_sort_key(item[0]))
    file_keys = sources.get(key, ())
    origin = f" from {join_limited(file_keys, 4, quote_code)}" if file_keys else ""
    lines = text.strip().splitlines()
    reason = cut_middle(lines[-2] if len(lines) > 1 else text, 300)
    others = [other for other in conversion_errors if other != key]
    more = f"; nor {join_limited(others, 4, quote_code)}" if others else ""
    return f"transformers cannot make {quote_code(key)}{origin}: {reason}{more}"


def _find_sources(
    loaded: Any, state: Mapping[str, Any], keys: Collection[str]
) -> dict[str, list[str]]:
    """Return key -> the keys of the file that the framework renames to it, for those of `keys`."""
    if not keys:
        return {}
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(loaded, None, None)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    expected = loaded.state_dict()
    sources: dict[str, list[str]] = {}
    for file_key in sorted(state, key=natural_sort_key):
        key, _ = rename_source_key(
            file_key, renamings, converters, loaded.base_model_prefix, expected
        )
        if key in keys:
            sources.setdefault(key, []).append(file_key)
    return sources


def _find_component_class(folder: Location, class_name: str) -> Any:
    """Return the class of a pipeline's model that diffusers has and transformers lacks, else None.

    The pipeline's configuration, one folder above, says in which part of diffusers it is.
    """
    import transformers

    is_elsewhere = class_name.isidentifier() and not hasattr(transformers, class_name)
    if not is_elsewhere or not path_exists(folder.parent / PIPELINE_CONFIG):
        return None
    from ckptool.loaders.registry import is_installed

    value = read_model_config(folder.parent, PIPELINE_CONFIG).get(folder.name)
    if not isinstance(value, list) or value[1:] != [class_name] or not is_installed("diffusers"):
        return None
    from ckptool.loaders.diffusers_pipelines import find_class

    cls = find_class(folder.parent, folder.name, value)
    return cls if issubclass(cls, transformers.PreTrainedModel) else None


def _find_class(class_name: str, config_fields: Mapping[str, Any], folder: str) -> Any:
    """Return the class of transformers; without a name the one of AutoModel for its model_type.

    Raises:
        ModuleError: transformers has no such class of models.
    """
    import transformers

    if not class_name:
        return _find_base_class(config_fields, folder)
    base = transformers.PreTrainedModel
    return find_model_class(transformers, base, class_name, folder, _CONFIG_NAME)


def _find_base_class(config_fields: Mapping[str, Any], folder: str) -> Any:
    from transformers import AutoModel
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = config_fields.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ModuleError(
            folder, f"{_CONFIG_NAME}: transformers has no model_type {cut_middle(repr(model_type))}"
        )
    mapping = AutoModel._model_mapping  # noqa: SLF001
    config_class = CONFIG_MAPPING[model_type]
    if config_class not in mapping:
        raise ModuleError(folder, f"{_CONFIG_NAME}: no class is given, and AutoModel has none")
    base_class = mapping[config_class]
    return base_class[0] if isinstance(base_class, tuple) else base_class
