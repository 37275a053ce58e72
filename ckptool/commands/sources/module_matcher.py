"""Checkpoint x the modules of a project -> ModelMatch: the best one, and its arguments."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from ckptool.commands.sources.file_arguments import (
    Arguments,
    FileArguments,
    list_offers,
    read_hyper_parameters,
    read_place,
)
from ckptool.commands.target import ModuleTarget
from ckptool.commands.worker.requests import DescribeModule, ProbeLoad
from ckptool.commands.worker.worker import ModuleWorker
from ckptool.compare.loader_diff import LoaderAnswer, build_loaded_diff
from ckptool.compare.module_comparison import build_module_diff
from ckptool.compare.module_diff import ModuleDiff
from ckptool.compare.renames import WRAPPERS
from ckptool.config import TRUST_RULE
from ckptool.errors import CkptoolError, ReadError
from ckptool.loaders.model_folder import find_model_folder, read_config
from ckptool.model import Checkpoint, ModuleInfo
from ckptool.modules.target.class_search import FoundModule
from ckptool.phrases import join_limited, pluralize, quote_code

_MAX_BUILDS: Final = 500
_CONFIG_NAMES: Final = frozenset(
    {"cfg", "config", "conf", "args", "hparams", "opt", "opts", "options", "params", "model_args"}
)
"""Names of parameters that are config objects by convention."""
_FOLDER_CONFIG: Final = "config.json"
"""File next to weights that often has a module's arguments."""
_MIN_SHARE: Final = 0.5
"""Share of the keys of both sides that must match where a checkpoint does not load strictly."""


class ModelMatch(Struct, frozen=True):
    """The module that fits a checkpoint best."""

    path: str
    """Path relative to the configuration."""
    target: str = ""
    """"" if none fits."""
    configured_kwargs: Mapping[str, Any] | str = {}
    """Arguments as the configuration has them: values, or "@place"s of the file."""
    outcome: str = ""
    place: str = ""
    """Place of the file that gives the arguments; "" if none does."""
    argument: str = ""
    """The one argument that the mapping at `place` is; "" if its items are the arguments."""

    def take_from_place(self) -> "ModelMatch":
        """Return the match with arguments that are read from each file itself."""
        place = f"@{self.place}"
        return replace(self, configured_kwargs={self.argument: place} if self.argument else place)


class _Arguments(Struct, frozen=True):
    """Constructor arguments to try."""

    kwargs: Arguments = {}
    place: str = ""
    argument: str = ""
    """As in `ModelMatch`."""

    @property
    def assumption(self) -> str:
        """Clause on a configuration object that has its defaults; "" without one."""
        names = [name for name, value in self.kwargs.items() if value == {}]
        return f", assuming the defaults of {join_limited(names, 1, quote_code)}" if names else ""


class _Candidate(Struct, frozen=True):
    """A module that was built, and how a checkpoint fits it."""

    target: str
    arguments: _Arguments
    diff: ModuleDiff

    @property
    def score(self) -> float:
        """Share of the keys of both sides that match, shapes included; 2 if it loads strictly."""
        count = len(self.diff.module.saved_tensors) + len(self.diff.unexpected_keys)
        if self.diff.is_strict:
            return 2.0
        return len(self.diff.matched_keys) / count if count else 0.0

    @property
    def unwrapped_count(self) -> int:
        """Number of keys that match once the prefix of a wrapper (DataParallel) is removed."""
        rewrite = self.diff.rewrite
        is_wrapper = rewrite is not None and {*rewrite.removed_segments} <= {*WRAPPERS}
        return len(rewrite.key_map) if rewrite is not None and is_wrapper else 0

    @property
    def unwrapped_score(self) -> float:
        count = len(self.diff.module.saved_tensors)
        return self.unwrapped_count / count if count else 0.0

    @property
    def outcome(self) -> str:
        if self.diff.is_strict:
            return "loads strictly"
        count = len(self.diff.module.saved_tensors)
        text = f"assumed: {len(self.diff.matched_keys)} of {count} keys match"
        if not self.unwrapped_count:
            return text
        return f"{text}, {self.unwrapped_count} without the prefix of a wrapper"


class ModuleMatcher:
    """Builds the modules of a project, and finds the one that fits a checkpoint."""

    def __init__(self, root: Path, modules: list[FoundModule], worker: ModuleWorker) -> None:
        self._root = root
        self._modules = modules
        self._worker = worker
        self._described: dict[str, ModuleInfo | None] = {}
        self._errors: dict[str, str] = {}
        self._built: set[str] = set()
        self._needed: dict[str, tuple[str, ...]] = {}

    @property
    def has_built(self) -> bool:
        """Whether at least one module was built, so that checkpoints were compared."""
        return bool(self._built)

    @property
    def errors(self) -> dict[str, str]:
        """Module -> why it could not be built, for those that never were."""
        return {name: text for name, text in self._errors.items() if name not in self._built}

    @property
    def needed_arguments(self) -> dict[str, tuple[str, ...]]:
        """Module -> required arguments that no checkpoint contains, for those never built."""
        return {name: names for name, names in self._needed.items() if name not in self._built}

    def match_checkpoint(self, name: str, checkpoint: Checkpoint) -> ModelMatch:
        """Return the module that fits best, with the arguments that it was built with."""
        candidates: list[_Candidate] = []
        uncompared: list[str] = []
        folder = self._root / name
        mappings = _list_mappings(checkpoint, folder if folder.is_dir() else folder.parent)
        for module in self._modules:
            choices = [*_list_arguments(module, mappings)] or self._list_defaults(module)
            if not choices:
                self._needed[module.target] = module.required
                uncompared.append(module.target)
            for arguments in choices:
                diff = self._compare(module, arguments.kwargs, checkpoint, folder)
                if diff is not None:
                    candidates.append(_Candidate(module.target, arguments, diff))
        best_candidates = _select_best(candidates)
        if not best_candidates:
            return ModelMatch(name, outcome=self._explain_no_match(folder, uncompared))
        best = best_candidates[0]
        equals = dict.fromkeys(c.target for c in best_candidates if c.target != best.target)
        also = f"; {join_limited([*equals], 3)} would as well" if equals else ""
        arguments = best.arguments
        match = ModelMatch(
            name,
            best.target,
            arguments.kwargs,
            f"{best.outcome}{arguments.assumption}{also}",
            arguments.place,
            arguments.argument,
        )
        is_plain = to_toml_value(arguments.kwargs) == arguments.kwargs
        return match if is_plain else match.take_from_place()

    def _list_defaults(self, module: FoundModule) -> list[_Arguments]:
        """Return a configuration object of defaults alone, if the module is built with it."""
        if len(module.required) != 1 or module.required[0] not in _CONFIG_NAMES:
            return []
        arguments = _Arguments({module.required[0]: {}})
        if self._describe(module, self._name_target(module, arguments.kwargs)) is None:
            self._errors.pop(module.target, None)
            return []
        return [arguments]

    def _name_target(
        self, module: FoundModule, kwargs: Arguments, folder: Path | None = None
    ) -> ModuleTarget:
        target = f"{self._root / module.file}:{module.name}"
        return ModuleTarget(target, kwargs, search_paths=(self._root,), folder=folder)

    def _compare(
        self, module: FoundModule, kwargs: Arguments, checkpoint: Checkpoint, path: Path
    ) -> ModuleDiff | None:
        folder = path if (path / _FOLDER_CONFIG).is_file() else None
        target = self._name_target(module, kwargs, folder)
        module_info = self._describe(module, target)
        if module_info is None:
            return None
        diff = build_module_diff(checkpoint, module_info, None)
        if not diff.is_strict:
            return diff

        def ask_loader(diff: ModuleDiff) -> LoaderAnswer:
            return self._worker.ask(ProbeLoad(target, FileArguments(), diff))

        return build_loaded_diff(checkpoint, module_info, None, ask_loader)

    def _describe(self, module: FoundModule, target: ModuleTarget) -> ModuleInfo | None:
        key = repr((target.module, target.kwargs, target.folder))
        if key not in self._described and len(self._described) < _MAX_BUILDS:
            try:
                self._described[key] = self._worker.ask(DescribeModule(target)).module_info
            except CkptoolError as error:
                self._described[key] = None
                self._errors.setdefault(module.target, getattr(error, "reason", str(error)))
            else:
                self._built.add(module.target)
        return self._described.get(key)

    def _explain_no_match(self, path: Path, uncompared: Collection[str]) -> str:
        """Return why no module is named: a framework's folder needs none.

        Args:
            path: the checkpoint.
            uncompared: modules whose required arguments the checkpoint does not have.
        """
        try:
            folder = find_model_folder(path)
        except ReadError:
            folder = None
        if folder is not None:
            return f"no entry needed: {folder.config_name} says that {folder.loader} loads it"
        count = pluralize(len(uncompared), "module")
        reason = (
            f"not compared with {count} whose arguments are not in it: add an entry with kwargs"
        )
        if len(uncompared) == len(self._modules):
            return reason
        if not self.has_built:
            return "not compared: no module of the project could be built"
        no_match = "no module of the project fits its keys and shapes"
        return f"{no_match}; {reason}" if uncompared else no_match


def _select_best(candidates: list[_Candidate]) -> list[_Candidate]:
    """Return those with the best score; if none fits, those that do without a wrapper's prefix."""
    scores = [candidate.score for candidate in candidates]
    if max(scores, default=0.0) < _MIN_SHARE:
        scores = [candidate.unwrapped_score for candidate in candidates]
    best_score = max(scores, default=0.0)
    pairs = zip(candidates, scores, strict=True)
    return [c for c, score in pairs if score == best_score >= _MIN_SHARE]


def _list_mappings(checkpoint: Checkpoint, folder: Path) -> dict[str, Mapping[str, Any]]:
    """Return the mappings that may be arguments: place of the file -> fields.

    "" has those of a config.json in the same folder.
    """
    mappings: dict[str, object] = {}
    if TRUST_RULE.get().uses_file_kwargs:
        mappings = {place: read_place(checkpoint, place) for place in list_offers(checkpoint)}
        mappings["hyper_parameters"] = dict(read_hyper_parameters(checkpoint))
        if (folder / _FOLDER_CONFIG).is_file():
            mappings[""] = _read_folder_config(folder)
    return {place: fields for place, fields in mappings.items() if isinstance(fields, dict)}


def _read_folder_config(folder: Path) -> dict[str, Any]:
    try:
        return read_config(folder / _FOLDER_CONFIG)
    except ReadError:
        return {}


def _list_arguments(
    module: FoundModule, mappings: Mapping[str, Mapping[str, Any]]
) -> Iterator[_Arguments]:
    """Yield the arguments to try: items of a mapping that fit, or all of it as one; then none.

    Without a place that commands could read them from, they are values that TOML can express.
    """
    for place, fields in mappings.items():
        fitting = {name: fields[name] for name in module.parameters if name in fields}
        if fitting and {*module.required} <= fitting.keys():
            yield _Arguments(fitting if place else to_toml_value(fitting), place)
        elif fields and _names_config(module, place or _FOLDER_CONFIG.partition(".")[0]):
            name = module.required[0]
            yield _Arguments({name: fields if place else to_toml_value(fields)}, place, name)
    if not module.required:
        yield _Arguments()


def _names_config(module: FoundModule, place: str) -> bool:
    """Whether the one argument that a constructor needs may be the mapping at a place."""
    if len(module.required) != 1:
        return False
    name = module.required[0]
    return name == place.rpartition(".")[2] or name in _CONFIG_NAMES


def to_toml_value(value: object) -> Any:
    """Return what TOML gives back for a plain value: it has no None, no tuple and no other keys."""
    if isinstance(value, Mapping):
        return {str(k): to_toml_value(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [to_toml_value(item) for item in value if item is not None]
    return value if isinstance(value, str | bool | int | float) else str(value)
