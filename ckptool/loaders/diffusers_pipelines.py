"""A pipeline of diffusers: its models as one module, each loaded by its own framework."""

from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, Final

from msgspec.structs import replace
from torch import nn

from ckptool.compare.framework.loading_info import LoadingInfo
from ckptool.errors import ModuleError
from ckptool.loaders import diffusers_models, transformers_models
from ckptool.loaders.config_checks import read_model_config
from ckptool.loaders.model_folder import PIPELINE_CONFIG
from ckptool.loaders.offline import run_offline
from ckptool.locations import Location
from ckptool.phrases import cut_middle, join_limited, quote_code

LOADER_CALL: Final = "from_pretrained()"


class Pipeline(nn.Module):
    """The models of a pipeline, each under the name that model_index.json gives it.

    Its forward runs each by itself: what a pipeline does with its models is code of its own.
    """

    def __init__(self, models: Mapping[str, nn.Module], others: tuple[str, ...]) -> None:
        super().__init__()
        self.others = others
        """Components that hold no weights: schedulers, tokenizers."""
        for name, model in models.items():
            self.add_module(name, model)

    def forward(self, **inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the output of each model that there are inputs for, by its name."""
        return {name: self.get_submodule(name)(**values) for name, values in inputs.items()}


def build_pipeline(folder: Location) -> Pipeline:
    """Build the models that model_index.json names, with initial values.

    Raises:
        ModuleError: a component is none of diffusers or transformers, or its configuration is
            refused.
    """
    models: dict[str, nn.Module] = {}
    others: list[str] = []
    for name, value in read_model_config(folder, PIPELINE_CONFIG).items():
        if name.startswith("_") or not isinstance(value, list) or value == [None, None]:
            continue
        with run_offline():
            cls = find_class(folder, name, value)
            framework = _find_framework(cls)
        if framework is None:
            others.append(name)
        else:
            models[name] = framework.build_class(folder / name, cls)
    return Pipeline(models, tuple(others))


def load_pipeline(module: Pipeline, state: Mapping[str, Any]) -> tuple[Pipeline, LoadingInfo]:
    """Load each model's part of a state as its framework does."""
    loaded: dict[str, nn.Module] = {}
    infos: dict[str, LoadingInfo] = {}
    for name, model in module.named_children():
        prefix = f"{name}."
        part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        framework = _find_framework(type(model))
        assert framework is not None
        if part:
            loaded[name], infos[name] = framework.load_state(model, part)
        else:
            reason = "its folder has no weights that from_pretrained() looks for"
            missing_keys = tuple(sorted(model.state_dict()))
            loaded[name] = model
            infos[name] = LoadingInfo(LOADER_CALL, missing_keys=missing_keys, error=reason)
    other_keys = tuple(sorted(k for k in state if k.partition(".")[0] not in infos))
    return Pipeline(loaded, module.others), _merge_infos(infos, other_keys, module.others)


def make_pipeline_inputs(module: Pipeline) -> dict[str, Mapping[str, Any]]:
    """Return the inputs of each model whose configuration says what its forward takes."""
    inputs: dict[str, Mapping[str, Any]] = {}
    for name, model in module.named_children():
        values = _find_framework(type(model)).make_inputs(model)
        if values:
            inputs[name] = values
    return inputs


def _merge_infos(
    infos: Mapping[str, LoadingInfo], other_keys: tuple[str, ...], others: tuple[str, ...]
) -> LoadingInfo:
    """Return one report, with keys below the names of the components."""

    def prefix_all(field: str) -> tuple[str, ...]:
        return tuple(f"{n}.{key}" for n, info in infos.items() for key in getattr(info, field))

    return LoadingInfo(
        loader=LOADER_CALL,
        missing_keys=prefix_all("missing_keys"),
        unexpected_keys=(*prefix_all("unexpected_keys"), *other_keys),
        mismatched_shapes={
            f"{name}.{key}": shape
            for name, info in infos.items()
            for key, shape in info.mismatched_shapes.items()
        },
        conversions=tuple(
            replace(
                conversion,
                key=f"{name}.{conversion.key}",
                file_keys=tuple(f"{name}.{key}" for key in conversion.file_keys),
            )
            for name, info in infos.items()
            for conversion in info.conversions
        ),
        ignored_keys=prefix_all("ignored_keys"),
        overwritten_keys={
            f"{name}.{key}": f"{name}.{kept_key}"
            for name, info in infos.items()
            for key, kept_key in info.overwritten_keys.items()
        },
        uninitialized_buffers=prefix_all("uninitialized_buffers"),
        file_names={
            f"{name}.{key}": f"{name}.{file_key}"
            for name, info in infos.items()
            for key, file_key in info.file_names.items()
        },
        notes=tuple(_describe_components(infos, others)),
        error="; ".join(f"{name}: {info.error}" for name, info in infos.items() if info.error),
    )


def _describe_components(
    infos: Mapping[str, LoadingInfo], others: tuple[str, ...]
) -> Iterator[str]:
    yield f"models of the pipeline: {join_limited(tuple(infos), 8)}"
    if others:
        yield f"without weights, and not looked at: {join_limited(others, 8)}"


def find_class(folder: Location, name: str, value: list[Any]) -> Any:
    """Return the class of a component.

    Raises:
        ModuleError: it is none of an installed framework.
    """
    is_named = len(value) == 2 and all(isinstance(v, str) and v.isidentifier() for v in value)
    cls = _look_up(*value) if is_named and name.isidentifier() else None
    if isinstance(cls, type) and cls.__module__.partition(".")[0] in {"diffusers", "transformers"}:
        return cls
    text = quote_code(cut_middle(str(value)))
    raise ModuleError(
        str(folder),
        f"{PIPELINE_CONFIG}: {quote_code(cut_middle(name))} is {text}, and neither diffusers nor"
        " transformers has it here: code selected by a checkpoint is never used",
    )


def _look_up(library: str, class_name: str) -> Any:
    import diffusers
    import transformers

    if library in {"diffusers", "transformers"}:
        return getattr({"diffusers": diffusers, "transformers": transformers}[library], class_name,
                       None)  # fmt: skip
    # Classes of one kind of pipeline: StableDiffusionSafetyChecker of "stable_diffusion".
    package = getattr(diffusers.pipelines, library, None)
    return getattr(package, class_name, None) if isinstance(package, ModuleType) else None


def _find_framework(cls: type) -> Any:
    """Return the file of the framework that loads a class of models; None if it is none."""
    import diffusers
    import transformers

    if issubclass(cls, diffusers.ModelMixin):
        return diffusers_models
    return transformers_models if issubclass(cls, transformers.PreTrainedModel) else None
