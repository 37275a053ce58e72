"""ckptool.toml or pyproject.toml -> ProjectConfig: models of the checkpoints, and policy."""

import re
import tomllib
from datetime import date
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, Literal, get_args

import msgspec

from ckptool.errors import ConfigError
from ckptool.faults import place, plainly
from ckptool.locations import Location, RemotePath


class ModelEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One `[[tool.ckptool.models]]`: the module of the checkpoints that match `path`."""

    path: str
    """Glob over the path relative to the configuration file, or over the whole URL of a remote
    location; `*` also matches "/"."""
    module: str
    """"package.module:Name"."""
    kwargs: dict[str, Any] = {}
    """Arguments of the constructor."""
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
    """Files with recorded outputs. All paths of `against`, `fixtures`, `plans` and `golden` are
    relative to the configuration file."""


LevelWord = Literal["note", "warning", "error"]
FailOn = Literal["note", "warning", "error", "never"]
Step = Literal["load", "device", "forward", "round trip", "survival"]
"""A verification level that a policy can require."""
Place = Literal["cuda", "simulated", "auto", "cpu"]


class Requirements(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
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
    """Globs: each global that a pickle imports must match one."""
    verify: tuple[Step, ...] | None = None
    """Levels of `ckptool verify` that must pass."""
    device: Place | None = None
    """Device of the verification: "auto" is a simulated device if there is no CUDA."""

    def __post_init__(self) -> None:
        if self.coverage is not None and not 0 <= self.coverage <= 1:
            raise ValueError("coverage is a share of the elements: 0 to 1")
        if self.max_size is not None:
            parse_size(self.max_size)


class PathEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """One `[[tool.ckptool.paths]]`: overrides for the checkpoints that match `path`."""

    path: str
    """Glob, as in `models`; of several matches the last wins."""
    select: tuple[str, ...] | None = None
    ignore: tuple[str, ...] | None = None
    levels: dict[str, LevelWord] = {}
    fail_on: FailOn | None = None
    """These four replace the settings for all files."""
    require: Requirements = Requirements()
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
    levels: dict[str, LevelWord] = {}
    """Code or family -> level of its findings."""
    require: Requirements = Requirements()
    """Requirements for a release."""
    paths: tuple[PathEntry, ...] = ()
    """Overrides for some files."""
    waivers: tuple[Waiver, ...] = ()
    """Accepted findings."""
    baseline: str | None = None
    """File of known findings, relative to the configuration file."""


class Config(msgspec.Struct, frozen=True):
    """Settings and the file that they come from; `file` is None without a configuration."""

    settings: Settings = Settings()
    directory: Path = Path()
    file: Path | None = None

    def entry(self, checkpoint: Location) -> ModelEntry | None:
        """Return the first model entry whose glob matches `checkpoint`, or None."""
        if isinstance(checkpoint, RemotePath):
            return self._matching(checkpoint.plain)
        try:
            relative = checkpoint.resolve().relative_to(self.directory.resolve()).as_posix()
        except (ValueError, OSError, RuntimeError):
            return None
        return self._matching(relative)

    def _matching(self, place: str) -> ModelEntry | None:
        return next((m for m in self.settings.models if fnmatchcase(place, m.path)), None)


_UNITS: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE: Final = re.compile(r"([0-9]{1,18})\s*([KMGT]?)(I?)B?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Convert "500 MB" or "2 GiB" to bytes.

    Raises:
        ValueError: `text` is not a size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or (match[3] and not match[2]):
        raise ValueError(f'{text!r} is no size: write "500 MB" or "2 GiB"')
    unit = _UNITS[match[2].upper()]
    if match[3]:
        unit = 1 << (10 * "KMGT".index(match[2].upper()) + 10)
    return int(match[1]) * unit


def load_config(start: Path) -> Config:
    """Read the nearest configuration in `start` or its parents; without one, return defaults.

    `start` is the working directory, never the folder of the checkpoint: a downloaded folder must
    not choose the code that is run.

    Raises:
        ConfigError: the file is not TOML, or has an unknown key or an invalid value.
    """
    for directory in (start, *start.parents):
        own = directory / "ckptool.toml"
        if own.is_file():
            return _decode(own, _parse(own))
        shared = directory / "pyproject.toml"
        if shared.is_file():
            section = _section(_parse(shared))
            if section is not None:
                return _decode(shared, section)
    return Config()


def read_config(path: Path) -> Config:
    """Read the configuration file `path`: `[tool.ckptool]` of a pyproject.toml, else all of it.

    Raises:
        ConfigError: it cannot be read, is not TOML, or has an unknown key or an invalid value.
    """
    found = _parse(path)
    return _decode(path, (_section(found) or {}) if path.name == "pyproject.toml" else found)


def _section(project: dict[str, Any]) -> object:
    """Return `[tool.ckptool]` of a pyproject.toml, or None."""
    tools = project.get("tool")
    return tools.get("ckptool") if isinstance(tools, dict) else None


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(path, f"is not valid TOML: {error}") from error
    except OSError as error:
        raise ConfigError(path, error.strerror or str(error)) from error


def _decode(path: Path, section: object) -> Config:
    try:
        return Config(msgspec.convert(section, Settings), path.parent, path)
    except msgspec.ValidationError as error:
        raise ConfigError(path, _explain(str(error))) from error


_TABLES: Final[dict[str, type[msgspec.Struct]]] = {
    "models": ModelEntry,
    "require": Requirements,
    "waivers": Waiver,
    "paths": PathEntry,
}


_WORDS: Final = {
    "fail-on": get_args(FailOn),
    "levels": get_args(LevelWord),
    "verify": get_args(Step),
    "device": get_args(Place),
}


def _explain(message: str) -> str:
    """Rewrite a msgspec message in TOML terms, with a suggestion for an unknown key."""
    unknown = re.match(r"Object contains unknown field `(.*?)`(.*)", message)
    if unknown is None:
        return plainly(message, _WORDS)
    places = [name for name in re.findall(r"[a-z]+", unknown[2]) if name in _TABLES]
    where = place(unknown[2].removeprefix(" - at `$").removesuffix("`"))
    table = _TABLES[places[-1]] if places else Settings
    known = sorted(f.encode_name for f in msgspec.structs.fields(table))
    close = get_close_matches(unknown[1], known, n=1)
    hint = f"did you mean `{close[0]}`?" if close else _elsewhere(unknown[1], known)
    said = f"unknown key `{unknown[1]}`; {hint}"
    return f"{where}: {said}" if where else said


def _elsewhere(name: str, known: list[str]) -> str:
    """Suggest a similar key of another table, or list `known_keys`."""
    for where, table in _TABLES.items():
        fields = [f.encode_name for f in msgspec.structs.fields(table)]
        close = get_close_matches(name, fields, n=1)
        if close and where != "models":
            return f"did you mean `{close[0]}` of `{where}`?"
    return f"known are {', '.join(known)}"
