"""Folder of a project -> InitReport and its configuration: which module loads which checkpoint."""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from ckptool.commands.sources.file_arguments import (
    FileArguments,
    list_offers,
    read_hyper_parameters,
    read_place,
)
from ckptool.commands.target import ModuleTarget
from ckptool.commands.worker.requests import DescribeModule, ProbeLoad
from ckptool.commands.worker.worker import ModuleWorker, get_worker
from ckptool.compare.loader_diff import LoaderAnswer, build_loaded_diff
from ckptool.compare.module_diff import ModuleDiff, build_module_diff
from ckptool.config import TRUST_RULE, ProjectConfig, Settings
from ckptool.errors import CkptoolError, ReadError, UnknownFormatError, UsageError
from ckptool.formats import open_checkpoint
from ckptool.model import Checkpoint, ModuleInfo, Skipped
from ckptool.modules.target.class_search import FoundClass, find_module_classes, iter_project_files
from ckptool.phrases import join_limited, pluralize
from ckptool.policy import ExitCode
from ckptool.reports.common import build_skipped_reports
from ckptool.reports.init import InitModelReport, InitReport

_SUFFIXES: Final = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
_MAX_CHECKPOINTS: Final = 200
_MAX_BUILDS: Final = 500
_CONFIG_NAMES: Final = frozenset(
    {"cfg", "config", "conf", "args", "hparams", "opt", "opts", "options", "params", "model_args"}
)
"""Names of parameters that are config objects by convention."""
_MIN_SHARE: Final = 0.5
"""Share of the keys of both sides that must match where a checkpoint does not load strictly."""


class ModelMatch(Struct, frozen=True):
    """The class that fits a checkpoint best."""

    path: str
    target: str = ""
    """"" if none fits."""
    kwargs: Mapping[str, Any] = {}
    outcome: str = ""


def init(folder: str | Path | None = None, *, dry_run: bool = False) -> InitReport:
    """Write the configuration of a project: `[[models]]`, with the module of each checkpoint.

    Into its pyproject.toml, or a new ckptool.toml if it has none.

    Args:
        folder: the project; None is the current directory.
        dry_run: write nothing.

    Raises:
        UsageError: the project has a configuration.
        WriteError: it cannot be written.
    """
    root = Path(folder or ".")
    file = _choose_file(root)
    classes, unread_files = find_module_classes(root)
    worker = get_worker()
    matcher = _ClassMatcher(
        root, [module_class for module_class in classes if module_class.is_importable], worker
    )
    skipped = [Skipped(name, "not looked at") for name in unread_files]
    skipped += [
        Skipped(module_class.target, "its file runs more than definitions when it is imported")
        for module_class in classes
        if not module_class.is_importable
    ]
    matches: list[ModelMatch] = []
    for name, checkpoint in _iter_checkpoints(root, skipped):
        matches.append(matcher.match_checkpoint(name, checkpoint))
    text = _format_models(_group_matches(matches), file)
    content = _add_text(file, text)
    if text:
        _check_content(file, content, matches)
    if text and not dry_run:
        from ckptool.formats.files.atomic import write_file

        write_file(file, content.encode(), force=True)
    skipped += [Skipped(target, reason) for target, reason in matcher.errors.items()]
    return InitReport(
        command="init",
        findings=(),
        skipped=build_skipped_reports(skipped),
        exit_code=ExitCode.PASSED if text else ExitCode.FAILED,
        verdict=_format_verdict(file, text, matches, len(classes), dry_run=dry_run),
        path=str(file),
        text=text,
        models=tuple(
            InitModelReport(path=match.path, module=match.target, outcome=match.outcome)
            for match in matches
        ),
        notes=(f"module classes: {join_limited([c.target for c in classes], 8)}",)
        if classes
        else (),
    )


def _choose_file(root: Path) -> Path:
    """Return the file to write: pyproject.toml if there is one, else ckptool.toml.

    Raises:
        UsageError: there is a configuration.
    """
    own_file, pyproject = root / "ckptool.toml", root / "pyproject.toml"
    if own_file.exists():
        raise UsageError(f"{own_file}: exists already: edit it, or remove it first")
    if not pyproject.is_file():
        return own_file
    try:
        tools = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("tool", {})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UsageError(f"{pyproject}: cannot be read: {error}") from error
    if isinstance(tools, dict) and "ckptool" in tools:
        raise UsageError(f"{pyproject}: has [tool.ckptool] already: edit it, or remove it first")
    return pyproject


def _iter_checkpoints(root: Path, skipped: list[Skipped]) -> Iterator[tuple[str, Checkpoint]]:
    """Yield the checkpoints of a project with their relative paths; others go to `skipped`."""
    for count, path in enumerate(iter_project_files(root, _SUFFIXES)):
        name = path.relative_to(root).as_posix()
        if count >= _MAX_CHECKPOINTS:
            skipped.append(Skipped(name, f"more than {_MAX_CHECKPOINTS} files: not looked at"))
            return
        try:
            yield name, open_checkpoint(path)
        except UnknownFormatError:
            continue
        except ReadError as error:
            skipped.append(Skipped(name, error.reason))


class _Candidate(Struct, frozen=True):
    """A class that was built, and how a checkpoint fits it."""

    target: str
    kwargs: Mapping[str, Any]
    diff: ModuleDiff

    @property
    def score(self) -> float:
        """Share of the keys of both sides that match, shapes included; 2 if it loads strictly."""
        count = len(self.diff.module.saved_tensors) + len(self.diff.unexpected_keys)
        if self.diff.is_strict:
            return 2.0
        return len(self.diff.matched_keys) / count if count else 0.0


class _ClassMatcher:
    """Builds the classes of a project, and finds the one that fits a checkpoint."""

    def __init__(self, root: Path, classes: list[FoundClass], worker: ModuleWorker) -> None:
        self._root = root
        self._classes = classes
        self._worker = worker
        self._described: dict[str, ModuleInfo | None] = {}
        self._errors: dict[str, str] = {}
        self._built: set[str] = set()

    @property
    def errors(self) -> dict[str, str]:
        """Class -> why it could not be built, for those that never were."""
        return {name: text for name, text in self._errors.items() if name not in self._built}

    def match_checkpoint(self, name: str, checkpoint: Checkpoint) -> ModelMatch:
        """Return the class that fits best, with the arguments that it was built with."""
        candidates: list[_Candidate] = []
        for module_class in self._classes:
            for kwargs in _list_arguments(module_class, checkpoint):
                diff = self._compare(module_class, kwargs, checkpoint)
                if diff is not None:
                    candidates.append(_Candidate(module_class.target, kwargs, diff))
        best = max(candidates, key=lambda candidate: candidate.score, default=None)
        if best is None or best.score < _MIN_SHARE:
            return ModelMatch(name, outcome="no class of the project fits its keys and shapes")
        equals = {c.target: None for c in candidates if c.score == best.score}
        equals.pop(best.target)
        also = f"; {join_limited([*equals], 3)} would as well" if equals else ""
        diff = best.diff
        matched = f"{len(diff.matched_keys)} of {len(diff.module.saved_tensors)} keys match"
        outcome = "loads strictly" if diff.is_strict else f"assumed: {matched}"
        return ModelMatch(name, best.target, best.kwargs, f"{outcome}{also}")

    def _compare(
        self, module_class: FoundClass, kwargs: Mapping[str, Any], checkpoint: Checkpoint
    ) -> ModuleDiff | None:
        target = ModuleTarget(
            str(self._root / module_class.file) + f":{module_class.name}",
            kwargs,
            search_paths=(self._root,),
        )
        module_info = self._describe(module_class, target)
        if module_info is None:
            return None
        diff = build_module_diff(checkpoint, module_info, None)
        if not diff.is_strict:
            return diff

        def ask_loader(diff: ModuleDiff) -> LoaderAnswer:
            return self._worker.ask(ProbeLoad(target, FileArguments(), diff))

        return build_loaded_diff(checkpoint, module_info, None, ask_loader)

    def _describe(self, module_class: FoundClass, target: ModuleTarget) -> ModuleInfo | None:
        key = repr((target.module, target.kwargs))
        if key not in self._described and len(self._described) < _MAX_BUILDS:
            try:
                self._described[key] = self._worker.ask(DescribeModule(target)).module_info
            except CkptoolError as error:
                self._described[key] = None
                self._errors.setdefault(module_class.target, getattr(error, "reason", str(error)))
            else:
                self._built.add(module_class.target)
        return self._described.get(key)


def _list_arguments(module_class: FoundClass, checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Return the arguments to try: those of the file that fit the constructor, then none.

    Of the file, the items of a mapping that has all that are required; or a mapping as the one
    argument that is.
    """
    candidates: list[dict[str, Any]] = []
    if TRUST_RULE.get().uses_file_kwargs:
        mappings = {place: read_place(checkpoint, place) for place in list_offers(checkpoint)}
        mappings["hyper_parameters"] = dict(read_hyper_parameters(checkpoint))
        for place, fields in mappings.items():
            values = fields if isinstance(fields, dict) else {}
            fitting = {name: values[name] for name in module_class.parameters if name in values}
            if fitting and {*module_class.required} <= fitting.keys():
                candidates.append(fitting)
            elif values and _names_config(module_class, place):
                candidates.append({module_class.required[0]: values})
    return [*candidates, *([] if module_class.required else [{}])]


def _names_config(module_class: FoundClass, place: str) -> bool:
    """Whether the one argument that a constructor needs may be the mapping at a place."""
    if len(module_class.required) != 1:
        return False
    return (
        module_class.required[0] == place.rpartition(".")[2]
        or module_class.required[0] in _CONFIG_NAMES
    )


def _group_matches(matches: list[ModelMatch]) -> list[tuple[str, ModelMatch]]:
    """Return (glob, match): one glob for a folder whose files of one suffix fit one module."""

    def get_glob(match: ModelMatch) -> str:
        path = Path(match.path)
        return (path.parent / f"*{path.suffix}").as_posix()

    result: list[tuple[str, ModelMatch]] = []
    for glob, group in groupby(sorted(matches, key=lambda m: (get_glob(m), m.path)), get_glob):
        members = list(group)
        is_one = all(
            (m.target, m.kwargs) == (members[0].target, members[0].kwargs) for m in members
        )
        if is_one and len(members) > 1 and members[0].target:
            result.append((glob, members[0]))
        else:
            result += [(member.path, member) for member in members if member.target]
    return sorted(result, key=lambda pair: ("*" in pair[0], pair[0]))  # the first match counts


def _format_models(groups: list[tuple[str, ModelMatch]], file: Path) -> str:
    table = "[[tool.ckptool.models]]" if file.name == "pyproject.toml" else "[[models]]"
    blocks: list[str] = []
    for path, match in groups:
        lines = [] if match.outcome == "loads strictly" else [f"# {match.outcome}"]
        lines += [table, f"path = {_format_value(path)}", f"module = {_format_value(match.target)}"]
        if match.kwargs:
            lines.append(f"kwargs = {_format_value(dict(match.kwargs))}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n" if blocks else ""


def _format_value(value: object) -> str:
    """Return a plain value as TOML, which has no null: such items are left out."""
    if isinstance(value, Mapping):
        items = (
            f"{_format_key(str(k))} = {_format_value(v)}" for k, v in value.items() if v is not None
        )
        return f"{{ {', '.join(items)} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_format_value(item) for item in value if item is not None)}]"
    if isinstance(value, str | bool | int):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _format_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key, re.ASCII) else json.dumps(key)


def _add_text(file: Path, text: str) -> str:
    """Return the content of the file with the text at its end."""
    old_text = file.read_text(encoding="utf-8") if file.is_file() else ""
    separator = "" if not old_text else "\n" if old_text.endswith("\n") else "\n\n"
    return f"{old_text}{separator}{text}"


def _check_content(file: Path, content: str, matches: list[ModelMatch]) -> None:
    """Read the configuration as commands will, and find each checkpoint's module in it.

    Raises:
        UsageError: it would not say what was found.
    """
    try:
        document = tomllib.loads(content)
        section = document["tool"]["ckptool"] if file.name == "pyproject.toml" else document
        config = ProjectConfig(msgspec.convert(section, Settings), file.parent, file)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, KeyError, TypeError) as error:
        raise UsageError(f"{file}: [[models]] cannot be added to it: {error}") from error
    for match in matches:
        entry = config.find_entry(file.parent / match.path)
        if match.target and (entry is None or entry.module != match.target):
            raise UsageError(f"{file}: the entry of {match.path} would be hidden by another")


def _format_verdict(
    file: Path, text: str, matches: list[ModelMatch], class_count: int, *, dry_run: bool
) -> str:
    if not class_count:
        return "nothing was written: no class of the project is an nn.Module"
    if not matches:
        return "nothing was written: there is no checkpoint in the project"
    if not text:
        return "nothing was written: no class fits a checkpoint"
    count = sum(bool(match.target) for match in matches)
    found_text = f"{count} of {pluralize(len(matches), 'checkpoint')}"
    return f"would write {file}: {found_text}" if dry_run else f"wrote {file}: {found_text}"
