"""ModuleDiff x ModuleFactory -> level "load": strict load, and load by assign on a meta build."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ckptool.compare.framework.framework_load import SEPARATING_LOADERS, apply_loading_info
from ckptool.compare.framework.loading_info import LoadingInfo
from ckptool.compare.module_diff import ModuleDiff, strict_load_obstacles
from ckptool.errors import ModuleError
from ckptool.folding import fold_names
from ckptool.loaders.registry import get_loader
from ckptool.model import Skipped
from ckptool.modules.live.load_call import call_load_state_dict
from ckptool.modules.tensors.uninitialized import UninitializedMemoryFill
from ckptool.modules.user_code import UserCodeError, user_code
from ckptool.modules.walk import walk_module
from ckptool.phrases import join_limited, quote_code
from ckptool.verification.loading.load_tensors import load_tensors, set_versions
from ckptool.verification.module_factory import ModuleFactory
from ckptool.verification.result import LevelResult, LevelStatus, VerificationLevel


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModuleFactory:
    """Creates instances of a module with a checkpoint's tensors loaded."""

    factory: ModuleFactory
    module_diff: ModuleDiff
    tensors: Mapping[str, Any]
    """Tensors by key, with keys rewritten to the module's by the diff's PrefixRewrite."""

    @property
    def separates_ties(self) -> bool:
        """Whether loading leaves tied tensors separate if their values in the file differ."""
        return self.module_diff.module.loader in SEPARATING_LOADERS

    def create_module(self, seed: int = 0) -> nn.Module:
        """Return a new instance with all tensors of matching key and shape loaded.

        Raises:
            ModuleError: it cannot be built, or loading raises.
        """
        module = self.factory.create_module(seed)
        if self.module_diff.module.loader != "torch":
            return self.load_with_framework(module)[0]
        mismatched_keys = {change.key for change in self.module_diff.shape_mismatches}
        mismatched_keys |= self.module_diff.mistyped_keys.keys()
        loadable = _copy_metadata(
            self.tensors,
            {key: tensor for key, tensor in self.tensors.items() if key not in mismatched_keys},
        )
        load_matching_tensors(module, loadable, self.factory.target)
        return module

    def load_with_framework(self, module: nn.Module) -> tuple[nn.Module, LoadingInfo]:
        """Return a module like `module` as its framework loads the tensors, and what it says.

        Memory that the framework leaves uninitialized is NaN, so that forward shows it.

        Raises:
            ModuleError: the loader raises.
        """
        loader = get_loader(self.module_diff.module.loader)
        try:
            with user_code(), UninitializedMemoryFill():
                return loader.load_state(module, self.tensors)
        except UserCodeError as error:
            raise ModuleError(self.factory.target, f"loading it raised {error}") from error


@dataclass(frozen=True, slots=True)
class MetaLoadResult:
    """Result of a build on meta and `load_state_dict(assign=True)`; fields as in Verification."""

    uninitialized_paths: tuple[str, ...] = ()
    broken_ties: tuple[tuple[str, ...], ...] = ()
    skipped: tuple[Skipped, ...] = ()


def load_module_factory(factory: ModuleFactory, module_diff: ModuleDiff) -> LoadedModuleFactory:
    """Load the tensors of the compared state into memory.

    Raises:
        ReadError: they cannot be read.
    """
    has_own_loader = module_diff.module.loader != "torch"  # it is given the file's keys
    keys = {} if has_own_loader or not module_diff.rewrite else module_diff.rewrite.key_map
    tensors = load_tensors(module_diff.checkpoint, module_diff.state, keys, module_diff.packed_keys)
    tensors.update({key: {} for key in module_diff.nested_keys})
    tensors.update(
        {name: tensors[saved_key] for name, saved_key in module_diff.retied_keys.items()}
    )
    return LoadedModuleFactory(factory, module_diff, tensors)


def load_matching_tensors(module: nn.Module, tensors: Mapping[str, Any], target: str) -> None:
    """Load `tensors` with strict=False.

    Raises:
        ModuleError: `load_state_dict` raises.
    """
    try:
        with user_code():
            call_load_state_dict(module, tensors, strict=False)
    except UserCodeError as error:
        raise ModuleError(target, f"load_state_dict() raised {error}") from error


def check_strict_load(loaded_factory: LoadedModuleFactory) -> LevelResult:
    """Load the file's tensors under their own keys with strict=True into a new instance."""
    module_diff = loaded_factory.module_diff
    if module_diff.module.loader != "torch":
        return _check_framework_load(loaded_factory)
    file_keys = (
        {module_key: file_key for file_key, module_key in module_diff.rewrite.key_map.items()}
        if module_diff.rewrite
        else {}
    )
    file_tensors = _copy_metadata(
        loaded_factory.tensors,
        {file_keys.get(key, key): tensor for key, tensor in loaded_factory.tensors.items()},
    )
    module = loaded_factory.factory.create_module()
    try:
        with user_code():
            call_load_state_dict(module, file_tensors)
    except UserCodeError as error:
        return LevelResult(
            VerificationLevel.LOAD,
            LevelStatus.FAILED,
            _explain_obstacles(module_diff) or f"it raised {error}",
            "cpu",
        )
    count_text = (
        f"{len(module_diff.matched_keys)} of {len(module_diff.module.saved_tensors)} tensors of the"
        " module were in the file"
    )
    tied_text = (
        "tied again, because safetensors stores one name: "
        f"{_format_keys(tuple(module_diff.retied_keys))}"
    )
    return LevelResult(
        VerificationLevel.LOAD,
        LevelStatus.PASSED,
        "",
        "cpu",
        (count_text, tied_text) if module_diff.retied_keys else (count_text,),
    )


def _check_framework_load(loaded_factory: LoadedModuleFactory) -> LevelResult:
    """Load the file's tensors as the framework does; passed if each finds its counterpart."""
    module = loaded_factory.factory.create_module()
    try:
        report = loaded_factory.load_with_framework(module)[1]
    except ModuleError as error:
        return LevelResult(VerificationLevel.LOAD, LevelStatus.FAILED, error.reason, "cpu")
    diff = apply_loading_info(loaded_factory.module_diff, report)
    reason = strict_load_obstacles(diff)
    status = LevelStatus.PASSED if diff.is_strict else LevelStatus.FAILED
    count_text = (
        f"{len(diff.matched_keys)} of {len(diff.module.saved_tensors)} tensors of the module were"
        f" in the file, loaded with {report.loader}"
    )
    details = (
        count_text,
        *_describe_diverged_ties(diff, is_separated=loaded_factory.separates_ties),
    )
    return LevelResult(VerificationLevel.LOAD, status, reason, "cpu", details)


def _describe_diverged_ties(diff: ModuleDiff, *, is_separated: bool) -> tuple[str, ...]:
    """Return what becomes of tied names whose values in the file differ; () without such names."""
    if not diff.diverged_ties:
        return ()
    word = "and" if is_separated else "over"
    ties = [f"{quote_code(a)} {word} {quote_code(b)}" for a, b in diff.diverged_ties]
    effect = "not tied, because their values in the file differ" if is_separated else "tied, loaded"
    return (f"{effect}: {join_limited(ties, 3)}",)


def loads_with_rewritten_keys(loaded_factory: LoadedModuleFactory) -> bool:
    """Return whether the diff's PrefixRewrite is all that strict loading needs."""
    if loaded_factory.module_diff.rewrite is None:
        return False
    module = loaded_factory.factory.create_module()
    try:
        with user_code():
            call_load_state_dict(module, loaded_factory.tensors)
    except UserCodeError:
        return False
    return True


def check_meta_load(loaded_factory: LoadedModuleFactory) -> MetaLoadResult:
    """Build on meta, load with assign=True; return tensors left on meta and broken ties."""
    if loaded_factory.module_diff.module.loader != "torch":
        return MetaLoadResult()  # its loader builds on meta itself
    check_name = "loading with assign=True on a meta build"
    if not loaded_factory.factory.can_rebuild:
        return MetaLoadResult(skipped=(Skipped(check_name, loaded_factory.factory.obstacle),))
    if not loaded_factory.module_diff.is_strict and not loaded_factory.module_diff.rewrite:
        return MetaLoadResult(skipped=(Skipped(check_name, "the file does not load unchanged"),))
    try:
        module = loaded_factory.factory.construct_module(on_meta=True)
        old_ties = _find_tied_names(module)
        with user_code():
            tensors = _copy_metadata(loaded_factory.tensors, dict(loaded_factory.tensors))
            call_load_state_dict(module, tensors, strict=False, assign=True)
    except (ModuleError, UserCodeError) as error:
        return MetaLoadResult(skipped=(Skipped(check_name, str(error)),))
    uninitialized_paths = (
        found_tensor.path
        for found_tensor in walk_module(module).tensors
        if isinstance(found_tensor.value, Tensor) and found_tensor.value.is_meta
    )
    new_ties = _find_tied_names(module)
    return MetaLoadResult(
        tuple(uninitialized_paths), tuple(tie for tie in old_ties if tie not in new_ties)
    )


def _explain_obstacles(module_diff: ModuleDiff) -> str:
    text = strict_load_obstacles(module_diff)
    if module_diff.rewrite and text:
        return f"{text}; the other levels ran with the keys rewritten as ckptool diff describes"
    if text and not module_diff.matched_keys:
        return f"{text}; no tensor matches: the other levels ran with initial values"
    return text


def _format_keys(keys: tuple[str, ...]) -> str:
    return join_limited(fold_names(keys), 3, more=" ...")


def _copy_metadata(original: Mapping[str, Any], tensors: dict[str, Any]) -> Mapping[str, Any]:
    """Return `tensors` with a copy of the `_metadata` (module versions) of `original`, if any."""
    versions = getattr(original, "_metadata", None)
    if versions is None:
        return tensors
    copy = type(original)(tensors)  # type: ignore[call-arg]
    set_versions(copy, versions)
    return copy


def _find_tied_names(module: nn.Module) -> list[tuple[str, ...]]:
    """Return the groups of two or more names of one parameter or buffer."""
    groups: dict[int, list[str]] = {}
    named_tensors = (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    )
    for name, tensor in named_tensors:
        groups.setdefault(id(tensor), []).append(name)
    return [tuple(names) for names in groups.values() if len(names) > 1]
