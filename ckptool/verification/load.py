"""ModuleDiff x ModuleFactory -> level "load": strict load, and load by assign on a meta build."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ckptool.compare import Loading, unmet
from ckptool.errors import ModuleError
from ckptool.model import Skipped
from ckptool.modules.usercode import UserCodeError, user_code
from ckptool.modules.walk import walk
from ckptool.verification.facts import Level, LevelResult, Status
from ckptool.verification.instances import Maker
from ckptool.verification.weights import weights


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """Creates instances of a module with a checkpoint's tensors loaded."""

    maker: Maker
    loading: Loading
    tensors: Mapping[str, Any]
    """Tensors by key, with keys rewritten to the module's by the diff's PrefixRewrite."""

    def make(self, seed: int = 0) -> nn.Module:
        """Return a fresh instance with all tensors of matching key and shape loaded.

        Raises:
            ModuleError: it cannot be built, or loading raises.
        """
        module = self.maker.make(seed)
        unfit = {change.key for change in self.loading.mismatched}
        fitting = _like(self.tensors, {k: v for k, v in self.tensors.items() if k not in unfit})
        load(module, fitting, self.maker.target)
        return module


@dataclass(frozen=True, slots=True)
class OnMeta:
    """Result of a build on meta and `load_state_dict(assign=True)`; fields as in Verification."""

    without_value: tuple[str, ...] = ()
    untied: tuple[tuple[str, ...], ...] = ()
    skipped: tuple[Skipped, ...] = ()


def subject(maker: Maker, loading: Loading) -> Subject:
    """Load the tensors of the compared state into memory.

    Raises:
        ReadError: they cannot be read.
    """
    keys = loading.rewrite.keys if loading.rewrite else {}
    tensors = weights(loading.checkpoint, loading.state, keys)
    tensors.update({name: tensors[kept] for name, kept in loading.restored.items()})
    return Subject(maker, loading, tensors)


def load(module: nn.Module, tensors: Mapping[str, Any], target: str) -> None:
    """Load `tensors` with strict=False.

    Raises:
        ModuleError: `load_state_dict` raises.
    """
    try:
        with user_code():
            module.load_state_dict(tensors, strict=False)
    except UserCodeError as error:
        raise ModuleError(target, f"load_state_dict() raised {error}") from error


def strictly(one: Subject) -> LevelResult:
    """Load the file's tensors under their own keys with strict=True into a fresh instance."""
    met = one.loading
    back = {new: old for old, new in met.rewrite.keys.items()} if met.rewrite else {}
    as_it_is = _like(one.tensors, {back.get(key, key): v for key, v in one.tensors.items()})
    module = one.maker.make()
    try:
        with user_code():
            module.load_state_dict(as_it_is, strict=True)
    except UserCodeError as error:
        return LevelResult(Level.LOAD, Status.FAILED, _unmet(met) or f"it raised {error}", "cpu")
    count = f"{len(met.matched)} of {len(met.module.saved)} tensors of the module were in the file"
    tied = f"tied again, as safetensors keeps one name: {_few(tuple(met.restored))}"
    return LevelResult(
        Level.LOAD, Status.PASSED, "", "cpu", (count, tied) if met.restored else (count,)
    )


def on_meta(one: Subject) -> OnMeta:
    """Build on meta, load with assign=True; return tensors left on meta and broken ties."""
    what = "loading with assign=True on a meta build"
    if not one.maker.rebuilds:
        return OnMeta(skipped=(Skipped(what, "an instance cannot be built again"),))
    if not one.loading.strict and not one.loading.rewrite:
        return OnMeta(skipped=(Skipped(what, "the file does not load as it is"),))
    try:
        module = one.maker.make(on_meta=True)
        ties = _ties(module)
        with user_code():
            module.load_state_dict(one.tensors, strict=False, assign=True)
    except (ModuleError, UserCodeError) as error:
        return OnMeta(skipped=(Skipped(what, str(error)),))
    empty = (f.path for f in walk(module).found if isinstance(f.value, Tensor) and f.value.is_meta)
    after = _ties(module)
    return OnMeta(tuple(empty), tuple(tie for tie in ties if tie not in after))


def _unmet(met: Loading) -> str:
    words = unmet(met)
    if met.rewrite and words:
        words = f"{words}; the rest was checked with the keys rewritten (CK209)"
    return words


def _few(keys: tuple[str, ...]) -> str:
    return ", ".join(keys[:3]) + (" ..." if len(keys) > 3 else "")


def _like(original: Mapping[str, Any], tensors: dict[str, Any]) -> Mapping[str, Any]:
    """Return `tensors` with the `_metadata` (module versions) of `original`, if it has any."""
    versions = getattr(original, "_metadata", None)
    if versions is None:
        return tensors
    again = type(original)(tensors)  # type: ignore[call-arg]
    again._metadata = versions  # type: ignore[attr-defined]  # noqa: SLF001
    return again


def _ties(module: nn.Module) -> list[tuple[str, ...]]:
    """Return the groups of two or more names of one parameter or buffer."""
    groups: dict[int, list[str]] = {}
    named = (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    )
    for name, tensor in named:
        groups.setdefault(id(tensor), []).append(name)
    return [tuple(names) for names in groups.values() if len(names) > 1]
