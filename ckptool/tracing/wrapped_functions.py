"""The functions that are wrapped, by the module that has them, and what each wrapper records."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from msgspec.structs import replace

from ckptool.tracing.construction import call_after_construction
from ckptool.tracing.load_facts import (
    LoadEnd,
    LoadKeys,
    LoadStart,
    MappingOrigin,
    build_load_record,
    compare_keys,
    find_mapping_origin,
    list_ties,
)
from ckptool.tracing.module_states import iter_saved_tensors
from ckptool.tracing.process_trace import ProcessTrace, get_active_trace
from ckptool.tracing.quiet import locate_caller
from ckptool.tracing.records import KeyMismatch, SaveRecord
from ckptool.tracing.save_facts import describe_saved_modules, record_trained_modules
from ckptool.tracing.training_objects import SavedContent

Function = Callable[..., Any]
Arguments = tuple[Any, ...]
Keywords = Mapping[str, Any]
TracedCall = Callable[[ProcessTrace, Function, Arguments, Keywords], Any]
"""What runs a wrapped function while the process is traced: of the trace, the original, its call.
"""
WrapperEntry = tuple[Any, str, Callable[[Function], Function]]
"""Object, attribute, and what makes a wrapper of the original function."""

HOOKED_MODULES: Final = (
    "torch",
    "torch.distributed.checkpoint",
    "safetensors.torch",
    "lightning_fabric.utilities.cloud_io",
    "lightning.fabric.utilities.cloud_io",
    "transformers.modeling_utils",
)
_MAX_ERROR_CHARS: Final = 2000


def list_wrappers(name: str) -> Iterator[WrapperEntry]:
    """Yield the wrappers for the functions of one module of HOOKED_MODULES."""
    module: Any = sys.modules[name]
    match name:
        case "torch":
            yield from _list_torch_wrappers(module)
        case "torch.distributed.checkpoint":
            for owner in (module, sys.modules[f"{name}.state_dict_saver"]):
                yield owner, "save", _wrap(_run_save)
            for owner in (module, sys.modules[f"{name}.state_dict_loader"]):
                yield owner, "load", _wrap(_run_dcp_load)
        case "safetensors.torch":
            yield module, "load_file", _wrap(_run_load)
            yield module, "load_model", _wrap(_run_load_model)
            yield module, "save_file", _wrap(_run_save)
            yield module, "save_model", _wrap(_run_save)
        case "transformers.modeling_utils":
            yield module.PreTrainedModel, "_finalize_model_loading", _make_finalize
        case _:
            yield module, "_atomic_save", _wrap(_run_save)


def _list_torch_wrappers(torch: Any) -> Iterator[WrapperEntry]:
    module_class = torch.nn.Module
    yield module_class, "__init__", _make_module_init
    yield module_class, "__setstate__", _make_module_setstate
    yield module_class, "load_state_dict", _wrap(_run_load_state_dict)
    for owner in (torch.serialization, torch):
        yield owner, "load", _wrap(_run_load)
        yield owner, "save", _wrap(_run_save)
    yield torch.optim.Optimizer, "__init__", _make_object_init("optimizer")
    schedulers = torch.optim.lr_scheduler
    for scheduler_name in ("LRScheduler", "ReduceLROnPlateau", "SequentialLR", "ChainedScheduler"):
        yield getattr(schedulers, scheduler_name), "__init__", _make_object_init("LR scheduler")
    yield torch.amp.GradScaler, "__init__", _make_object_init("gradient scaler")


def _wrap(run: TracedCall) -> Callable[[Function], Function]:
    """Return what makes a wrapper: the original itself is called where no trace is active."""

    def make_wrapper(original: Function) -> Function:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            trace = get_active_trace()
            if trace is None:
                return original(*args, **kwargs)
            return run(trace, original, args, kwargs)

        return wrapper

    return make_wrapper


def _make_module_init(original: Function) -> Function:
    def initialize(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        trace = get_active_trace()
        if trace is not None:
            call_after_construction(self, _record_built)

    return initialize


def _record_built(module: Any, arguments: dict[str, str] | None) -> None:
    trace = get_active_trace()
    if trace is not None:
        trace.observe("the state of a new module", trace.states.record_built, module, arguments)


def _make_module_setstate(original: Function) -> Function:
    def set_state(self: Any, state: Any) -> None:
        original(self, state)
        trace = get_active_trace()
        if trace is not None:
            trace.observe("a copied module", trace.states.record_copied, self)

    return set_state


def _make_object_init(kind: str) -> Callable[[Function], Function]:
    def make_init(original: Function) -> Function:
        def initialize(self: Any, *args: Any, **kwargs: Any) -> None:
            trace = get_active_trace()
            if trace is not None:
                trace.observe(f"an {kind}", _record_object, trace, self, kind)
            original(self, *args, **kwargs)

        return initialize

    return make_init


def _record_object(trace: ProcessTrace, value: object, kind: str) -> None:
    trace.objects.record_object(value, kind, locate_caller())
    trace.states.note_added()
    trace.generators.note_states(trace.states.list_modules())


def _run_load_state_dict(
    trace: ProcessTrace, original: Function, args: Arguments, kwargs: Keywords
) -> Any:
    module, mapping = args[0], _find_argument(1, ("state_dict",), args, kwargs)
    start = trace.observe("a load", _begin_load, trace, module, mapping)
    is_strict = bool(_find_argument(2, ("strict",), args, {"strict": True, **kwargs}))
    try:
        with trace.nest():
            result = original(*args, **kwargs)
    except Exception as error:
        end = LoadEnd("load_state_dict()", is_strict, _describe_error(error))
        trace.observe("a load", _end_load, trace, module, start, end)
        raise
    end = LoadEnd("load_state_dict()", is_strict)
    trace.observe("a load", _end_load, trace, module, start, end, result)
    return result


def _describe_error(error: Exception) -> str:
    return str(error)[:_MAX_ERROR_CHARS] or type(error).__name__


def _begin_load(trace: ProcessTrace, module: Any, mapping: Mapping[str, Any]) -> LoadStart:
    trace.generators.note_states(trace.states.list_modules())
    trace.states.note_added()
    return LoadStart(
        locate_caller(),
        find_mapping_origin(mapping, trace.origins),
        list_ties(module),
        trace.states.take_state(module),
        compare_keys(module, mapping),
        len(mapping),
    )


def _end_load(
    trace: ProcessTrace, module: Any, start: LoadStart | None, end: LoadEnd, result: Any = None
) -> None:
    """Record a load. `result` is what the loader returned: a pair of keys, if it has one."""
    if start is None:
        return
    if hasattr(result, "missing_keys"):
        keys = replace(
            start.keys,
            missing_keys=tuple(result.missing_keys),
            unexpected_keys=tuple(result.unexpected_keys),
        )
        start = replace(start, keys=keys)
    unsaved = trace.states.describe_unsaved(module)
    if not end.error:
        trace.states.record_load(module, start.state)
    arguments = trace.states.get_arguments(module)
    trace.write_record(build_load_record(module, start, end, unsaved, arguments))


def _run_load(trace: ProcessTrace, original: Function, args: Arguments, kwargs: Keywords) -> Any:
    """torch.load and safetensors.torch.load_file: the file is the first argument."""
    with trace.nest():
        content = original(*args, **kwargs)
    source = _find_argument(0, ("f", "filename"), args, kwargs)
    trace.observe("a file that was read", _record_read, trace, source, content)
    return content


def _record_read(trace: ProcessTrace, source: Any, content: Any) -> None:
    file = _name_file(source)
    if file:
        trace.origins.record_file(file, content)


def _name_file(source: Any) -> str:
    """Return the absolute path of a path or an open file, "" of a buffer in memory."""
    if not isinstance(source, str | bytes | os.PathLike):
        source = getattr(source, "name", None) or getattr(source, "path", None)
    if not isinstance(source, str | bytes | os.PathLike):
        return ""
    path = os.fsdecode(source)
    return path if "://" in path else os.path.abspath(path)  # noqa: PTH100 (links stay)


def _run_load_model(
    trace: ProcessTrace, original: Function, args: Arguments, kwargs: Keywords
) -> Any:
    model = _find_argument(0, ("model",), args, kwargs)
    file = _name_file(_find_argument(1, ("filename",), args, kwargs))
    start = trace.observe("a load", _begin_load, trace, model, {})
    is_strict = bool(_find_argument(2, ("strict",), args, {"strict": True, **kwargs}))
    error = ""
    missing: Any = ()
    unexpected: Any = ()
    try:
        with trace.nest():
            missing, unexpected = original(*args, **kwargs)
    except Exception as raised:
        error = _describe_error(raised)
        raise
    finally:
        keys = LoadKeys(tuple(missing), tuple(unexpected), ())
        end = LoadEnd("load_model()", is_strict, error)
        trace.observe("a load", _end_file_load, trace, model, start, file, keys, end)
    return missing, unexpected


def _end_file_load(
    trace: ProcessTrace,
    module: Any,
    start: LoadStart | None,
    file: str,
    keys: LoadKeys,
    end: LoadEnd,
) -> None:
    """Record a load whose file and keys the loader itself knows."""
    if start is None:
        return
    saved_count = sum(1 for _ in iter_saved_tensors(module))
    key_count = saved_count - len(keys.missing_keys) + len(keys.unexpected_keys)
    origin = MappingOrigin(file)
    _end_load(trace, module, replace(start, origin=origin, keys=keys, key_count=key_count), end)


def _make_finalize(original: Function) -> Function:
    """transformers: after from_pretrained has filled the module."""

    def finalize(model: Any, load_config: Any, loading_info: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(model, load_config, loading_info, *args, **kwargs)
        trace = get_active_trace()
        if trace is not None:
            trace.observe("a load", _record_pretrained, trace, model, load_config, result)
        return result

    return finalize


def _record_pretrained(trace: ProcessTrace, model: Any, load_config: Any, info: Any) -> None:
    start = _begin_load(trace, model, {})
    mismatches = tuple(
        KeyMismatch(str(key), tuple(shape), tuple(module_shape))
        for key, shape, module_shape in sorted(info.mismatched_keys, key=str)
    )
    missing, unexpected = sorted(info.missing_keys), sorted(info.unexpected_keys)
    keys = LoadKeys(tuple(missing), tuple(unexpected), mismatches)
    file = _name_file(load_config.pretrained_model_name_or_path)
    end = LoadEnd("from_pretrained()", is_strict=False)
    _end_file_load(trace, model, start, file, keys, end)


def _run_dcp_load(
    trace: ProcessTrace, original: Function, args: Arguments, kwargs: Keywords
) -> Any:
    with trace.nest():
        result = original(*args, **kwargs)
    state_dict = _find_argument(0, ("state_dict",), args, kwargs)
    file = kwargs.get("checkpoint_id")
    trace.observe("a file that was read", _record_read, trace, file, state_dict)
    return result


_OBJECT_NAMES: Final = ("obj", "tensors", "model", "state_dict", "checkpoint")
_FILE_NAMES: Final = ("f", "filename", "checkpoint_id", "filepath")


def _find_argument(position: int, names: tuple[str, ...], args: Arguments, kwargs: Keywords) -> Any:
    if len(args) > position:
        return args[position]
    return next((kwargs[name] for name in names if name in kwargs), None)


def _run_save(trace: ProcessTrace, original: Function, args: Arguments, kwargs: Keywords) -> Any:
    """Record what is saved before it is, and write the record when the save has ended.

    The object and the file are the first two arguments, of torch.save, save_file, save_model and
    dcp.save as of Lightning's `_atomic_save`, which saves into memory first.
    """
    content = _find_argument(0, _OBJECT_NAMES, args, kwargs)
    target = _find_argument(1, _FILE_NAMES, args, kwargs)
    record = trace.observe(
        "a save", _describe_save, trace, content, target, _name_function(original)
    )
    error = ""
    try:
        with trace.nest():
            return original(*args, **kwargs)
    except Exception as raised:
        error = _describe_error(raised)
        raise
    finally:
        if record is not None:
            trace.observe("a save", _end_save, trace, record, error, content)


def _name_function(function: Function) -> str:
    """Return how users call a saver: "torch.save()"."""
    name = getattr(function, "__name__", "")
    module = getattr(function, "__module__", "")
    if module == "torch.serialization":
        return f"torch.{name}()"
    return "torch.save()" if name == "_atomic_save" else f"{name}()"


def _describe_save(trace: ProcessTrace, value: Any, target: Any, saver: str) -> SaveRecord:
    from torch import nn

    if isinstance(value, nn.Module) and saver == "save_model()":
        value = dict(iter_saved_tensors(value))
    content = SavedContent(value)
    record_trained_modules(trace.states, trace.objects)
    saved_objects, unsaved_objects = trace.objects.split_by_content(content)
    modules = trace.states.list_modules()
    saved_generators, unsaved_generators = trace.generators.split_by_content(content, modules)
    return SaveRecord(
        file=_name_file(target),
        saver=saver,
        where=locate_caller(),
        modules=describe_saved_modules(content, trace.states),
        saved_objects=(*saved_objects, *saved_generators),
        unsaved_objects=(*unsaved_objects, *unsaved_generators),
        tensor_count=len(content.tensors),
    )


def _end_save(trace: ProcessTrace, record: SaveRecord, error: str, content: Any) -> None:
    trace.write_record(replace(record, error=error))
    if trace.resume_states is not None and not error:
        has_model = bool(record.modules)
        trace.write_record(
            trace.resume_states.describe_save(record.file, content, has_model=has_model)
        )
