"""ckptool.toml or pyproject.toml -> ProjectConfig: models of the checkpoints, and policy."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from datetime import date
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, Literal, get_args

import msgspec

from ckptool.decode_errors import explain_decode_error, find_unknown_field, format_json_path
from ckptool.errors import ConfigError, ReadError, describe_os_error
from ckptool.locations import Location, RemotePath, list_glob_names, read_small_file


class ModelEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One `[[tool.ckptool.models]]`: the module of the checkpoints that match `path`."""

    path: str
    """Glob over the path relative to the configuration file, or over the whole URL of a remote
    location; `*` also matches "/"."""
    module: str
    """"package.module:Name"."""
    kwargs: dict[str, Any] | str = {}
    """Arguments of the constructor. "@cfg" takes what the checkpoint stores at `cfg`, for one
    argument or for all of them (`kwargs = "@cfg"`); "@@cfg" is the string "@cfg"."""
    at: str | None = None
    """Place of the state_dict in the file ("state_dict"); without it the best match."""
    inputs: tuple[str, ...] = ()
    """Inputs of forward: "float32[2,6,3]", "mask=bool[6]", a file, "package.module:function"."""
    against: str | None = None
    """Reference of `ckptool gate`: a lock file, a checkpoint, or "package.module:Name"."""
    fixtures: tuple[str, ...] = ()
    """Globs: old checkpoints that must load into the module, directly or by a migration plan."""
    plans: tuple[str, ...] = ()
    """Migration plans released with the code, for the fixtures."""
    golden: tuple[str, ...] = ()
    """Files with recorded outputs. All paths of `against`, `fixtures`, `plans`, `golden` and
    `revisions` are relative to the configuration file."""
    revisions: str | None = None
    """Folder of its chain of migrations; without it `ckpt_migrations`, if there is one."""


LevelName = Literal["note", "warning", "error"]
FailOn = Literal["note", "warning", "error", "never"]
RequiredLevel = Literal["load", "device", "forward", "round trip", "persistence"]
"""A verification level that a policy can require."""
DeviceChoice = Literal["cuda", "simulated", "auto", "cpu"]


class ReleaseRequirements(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """`[tool.ckptool.require]`: requirements of `ckptool gate` for a release. None is not set."""

    strict: bool | None = None
    """Whether load_state_dict(strict=True) must succeed, except for waived keys."""
    coverage: float | None = None
    """Minimum fraction of parameter elements that load, 0 to 1."""
    dtypes: tuple[str, ...] | None = None
    """Globs: the dtype of each tensor must match one."""
    max_size: str | None = None
    """Maximum size of the file, or of all files of a folder: "500 MB", "2 GiB"."""
    safetensors: bool | None = None
    """Whether every other container fails."""
    globals: tuple[str, ...] | None = None
    """Exact names: globals that a pickle may import in addition to those that torch.load allows."""
    verify: tuple[RequiredLevel, ...] | None = None
    """Levels of `ckptool verify` that must pass."""
    device: DeviceChoice | None = None
    """Device of the verification: "auto" is a simulated device if there is no CUDA."""

    def __post_init__(self) -> None:
        if self.coverage is not None and not 0 <= self.coverage <= 1:
            raise ValueError("coverage is a fraction of the elements: 0 to 1")
        if self.max_size is not None:
            parse_size(self.max_size)
        for name in self.globals or ():
            if _GLOB_CHARACTERS & set(name):
                raise ValueError(
                    f"globals: {name!r} is a pattern and would allow unreviewed globals: list "
                    "each global by its exact name"
                )


class PathEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """One `[[tool.ckptool.paths]]`: overrides for the checkpoints that match `path`."""

    path: str
    """Glob, as in `models`; of several matches the last wins."""
    select: tuple[str, ...] | None = None
    """Replaces `select` for all files."""
    ignore: tuple[str, ...] | None = None
    """Replaces `ignore` for all files."""
    levels: dict[str, LevelName] = {}
    """Replaces `levels` for all files, code by code."""
    fail_on: FailOn | None = None
    """Replaces `fail-on` for all files."""
    require: ReleaseRequirements = ReleaseRequirements()
    """Replaces the requirements for all files, key by key."""


class Waiver(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """One `[[tool.ckptool.waivers]]`: known findings, accepted for a reason."""

    rule: str
    """Rule code, or a prefix of codes."""
    reason: str
    """Why it is accepted; shown in every report."""
    key: str = "*"
    """Glob over the key of a finding."""
    path: str = "*"
    """Glob over the path of the checkpoint, as in `models`."""
    expires: date | None = None
    """Last day on which it applies."""

    def __post_init__(self) -> None:
        if not self.reason.strip():
            raise ValueError("a waiver needs a reason")


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """`[tool.ckptool]` of pyproject.toml, or the whole ckptool.toml."""

    models: tuple[ModelEntry, ...] = ()
    """Modules of the checkpoints; the first match applies."""
    select: tuple[str, ...] = ()
    """Codes or families ("CK3") to report; () reports all."""
    ignore: tuple[str, ...] = ()
    """Codes or families not to report; the longer match wins."""
    fail_on: FailOn | None = None
    """Lowest level that fails a run; without it "error"."""
    levels: dict[str, LevelName] = {}
    """Code or family -> level of its findings."""
    require: ReleaseRequirements = ReleaseRequirements()
    """Requirements for a release."""
    paths: tuple[PathEntry, ...] = ()
    """Overrides for some files."""
    waivers: tuple[Waiver, ...] = ()
    """Accepted findings."""
    baseline: str | None = None
    """File of known findings, relative to the configuration file."""
    file_kwargs: bool = True
    """Whether a checkpoint's own `hyper_parameters` are used as constructor arguments."""


class ProjectConfig(msgspec.Struct, frozen=True):
    """Settings and the file that they come from; `file` is None without a configuration."""

    settings: Settings = Settings()
    directory: Path = Path()
    file: Path | None = None

    def announce_code(self, name: str) -> None:
        """Tell `TRUST_RULE` that code is about to be run which this configuration names."""
        announce = TRUST_RULE.get().announce_code
        if announce is not None and self.file is not None:
            announce(self.file, name)

    def find_entry(self, checkpoint: Location) -> ModelEntry | None:
        """Return the first model entry whose glob matches `checkpoint`, or None.

        Raises:
            ReadError: a link and its target, or the files of a folder, have different entries.
        """
        names = list_glob_names(checkpoint, self.directory)
        if not isinstance(checkpoint, RemotePath):
            names = tuple(name for name in names if not Path(name).is_absolute())
        entries = [entry for name in names if (entry := self._match_entry(name)) is not None]
        if any(entry != entries[0] for entry in entries):
            reason = (
                "is matched under several names (a link or a folder), and [[models]] has "
                f"{entries[0].module} for one of them and {entries[-1].module} for another: "
                "choose the module with -m"
            )
            raise ReadError(checkpoint, reason)
        return entries[0] if entries else None

    def _match_entry(self, path: str) -> ModelEntry | None:
        return next(
            (entry for entry in self.settings.models if fnmatchcase(path, entry.path)), None
        )


class TrustRule(msgspec.Struct, frozen=True):
    """What becomes of code and arguments that a file names, and who is told before they are used.

    The library uses them: its caller gives `config` and `kwargs`, or sets `TRUST_RULE`.
    """

    uses_file_kwargs: bool = True
    """Whether constructor arguments in a checkpoint (`hyper_parameters`) are used if they fit."""
    announce_file_kwargs: Callable[[str, Mapping[str, str]], None] | None = None
    """Called with the import target and those arguments, each value as Python source, cut."""
    announce_namespace: Callable[[str, str], None] | None = None
    """Called with the import target and the parameter whose dict becomes an argparse.Namespace."""
    announce_warnings: Callable[[Sequence[str], int], None] | None = None
    """Called with warnings that user code gave, in one line each, and the number of all."""
    announce_code: Callable[[Path, str], None] | None = None
    """Called with the configuration file and the "package.module:Name" that it names."""
    announce_folder: Callable[[str], None] | None = None
    """Called with what a framework's folder says about its module, before it is built."""
    announce_revision: Callable[[Path], None] | None = None
    """Called with the Python file of a revision before it is run."""


_DEFAULT_TRUST: Final = TrustRule()
TRUST_RULE: Final[ContextVar[TrustRule]] = ContextVar("TRUST_RULE", default=_DEFAULT_TRUST)
"""Rule of the running command."""


class GivenWords(msgspec.Struct, frozen=True):
    """Words of the running command line that a fix repeats; () where the library is called."""

    command: tuple[str, ...] = ()
    """All of it, "ckptool" first."""
    shared: tuple[str, ...] = ()
    """Where modules are, who loads them, inputs, bounds."""


_NO_WORDS: Final = GivenWords()
GIVEN_WORDS: Final[ContextVar[GivenWords]] = ContextVar("GIVEN_WORDS", default=_NO_WORDS)
"""Words of the running command line."""


_GLOB_CHARACTERS: Final = frozenset("*?[]")
_UNITS: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE_PATTERN: Final = re.compile(r"([0-9]{1,18})\s*([KMGT]?)(I?)B?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Convert "500 MB" or "2 GiB" to bytes.

    Raises:
        ValueError: `text` is not a size.
    """
    match = _SIZE_PATTERN.fullmatch(text.strip())
    if match is None or (match[3] and not match[2]):
        raise ValueError(f'{text!r} is not a size: write "500 MB" or "2 GiB"')
    unit = _UNITS[match[2].upper()]
    if match[3]:
        unit = 1 << (10 * "KMGT".index(match[2].upper()) + 10)
    return int(match[1]) * unit


def load_config(start: Path) -> ProjectConfig:
    """Read the nearest configuration in `start` or its parents; without one, return defaults.

    `start` is the working directory, never the folder of the checkpoint: a downloaded folder must
    not choose the code that is run.

    Raises:
        ConfigError: the file is not TOML, or has an unknown key or an invalid value.
    """
    for directory in (start, *start.parents):
        own_file = directory / "ckptool.toml"
        if own_file.is_file():
            return _decode_settings(own_file, _parse_toml(own_file))
        pyproject = directory / "pyproject.toml"
        if pyproject.is_file():
            section = _get_section(_parse_toml(pyproject))
            if section is not None:
                return _decode_settings(pyproject, section)
    return ProjectConfig()


def read_config(path: Path) -> ProjectConfig:
    """Read the configuration file `path`: `[tool.ckptool]` of a pyproject.toml, else all of it.

    Raises:
        ConfigError: it cannot be read, is not TOML, or has an unknown key or an invalid value.
    """
    document = _parse_toml(path)
    return _decode_settings(
        path, (_get_section(document) or {}) if path.name == "pyproject.toml" else document
    )


def _get_section(project: dict[str, Any]) -> object:
    """Return `[tool.ckptool]` of a pyproject.toml, or None."""
    tools = project.get("tool")
    return tools.get("ckptool") if isinstance(tools, dict) else None


def _parse_toml(path: Path) -> dict[str, Any]:
    import tomllib  # here, as nothing else of a command without a configuration needs it

    try:
        return tomllib.loads(read_small_file(path).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(path, f"is not valid TOML: {error}") from error
    except OSError as error:
        raise ConfigError(path, describe_os_error(error)) from error


def _decode_settings(path: Path, section: object) -> ProjectConfig:
    try:
        return ProjectConfig(msgspec.convert(section, Settings), path.parent, path)
    except msgspec.ValidationError as error:
        raise ConfigError(path, _explain_error(str(error))) from error


_TABLE_TYPES: Final[dict[str, type[msgspec.Struct]]] = {
    "models": ModelEntry,
    "require": ReleaseRequirements,
    "waivers": Waiver,
    "paths": PathEntry,
}


_CHOICES: Final = {
    "fail-on": get_args(FailOn),
    "levels": get_args(LevelName),
    "verify": get_args(RequiredLevel),
    "device": get_args(DeviceChoice),
}


def _explain_error(message: str) -> str:
    """Rewrite a msgspec message in TOML terms, with a suggestion for an unknown key."""
    unknown_field = find_unknown_field(message)
    if unknown_field is None:
        return explain_decode_error(message, _CHOICES)
    name, path = unknown_field
    table_names = [step for step in re.findall(r"[a-z]+", path) if step in _TABLE_TYPES]
    location = format_json_path(path)
    table = _TABLE_TYPES[table_names[-1]] if table_names else Settings
    known_keys = sorted(f.encode_name for f in msgspec.structs.fields(table))
    close = get_close_matches(name, known_keys, n=1)
    hint = f"did you mean `{close[0]}`?" if close else _suggest_table(name, known_keys)
    explanation = f"unknown key `{name}`; {hint}"
    return f"{location}: {explanation}" if location else explanation


def _suggest_table(name: str, known_keys: list[str]) -> str:
    """Suggest a similar key of another table, or list `known_keys`."""
    for table_name, table in _TABLE_TYPES.items():
        fields = [f.encode_name for f in msgspec.structs.fields(table)]
        close = get_close_matches(name, fields, n=1)
        if close and table_name != "models":
            return f"did you mean `{close[0]}` of `{table_name}`?"
    return f"known are {', '.join(known_keys)}"
