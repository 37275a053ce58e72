"""ckptool.toml or pyproject.toml -> Config: which module belongs to which checkpoint."""

import re
import tomllib
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import msgspec

from ckptool.errors import ConfigError
from ckptool.locations import Location, RemotePath


class ModelEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One `[[tool.ckptool.models]]`: the module that the checkpoints matching `path` belong to."""

    path: str
    """Glob over the path relative to the configuration file, or over the whole of a remote
    location; `*` also matches "/"."""
    module: str
    """"package.module:Name"."""
    kwargs: dict[str, Any] = {}
    at: str | None = None
    inputs: tuple[str, ...] = ()
    """What forward takes: "float32[2,6,3]", "mask=bool[6]", a file, "package.module:function"."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """`[tool.ckptool]` of pyproject.toml, or the whole of ckptool.toml."""

    models: tuple[ModelEntry, ...] = ()
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    fail_on: Literal["note", "warning", "error", "never"] | None = None


class Config(msgspec.Struct, frozen=True):
    """Settings, and where they were found."""

    settings: Settings = Settings()
    directory: Path = Path()

    def entry(self, checkpoint: Location) -> ModelEntry | None:
        """Return the first entry whose glob matches `checkpoint`."""
        if isinstance(checkpoint, RemotePath):
            return self._matching(checkpoint.plain)
        try:
            relative = checkpoint.resolve().relative_to(self.directory.resolve()).as_posix()
        except (ValueError, OSError, RuntimeError):
            return None
        return self._matching(relative)

    def _matching(self, place: str) -> ModelEntry | None:
        return next((m for m in self.settings.models if fnmatchcase(place, m.path)), None)


def load_config(start: Path) -> Config:
    """Read the nearest configuration in `start` or above; without one, the empty Config.

    It is looked for where the user stands and never beside the checkpoint: a downloaded folder must
    not choose the code that is run.

    Raises:
        ConfigError: the file is no TOML, or says what ckptool does not know.
    """
    for directory in (start, *start.parents):
        own = directory / "ckptool.toml"
        if own.is_file():
            return _decode(own, _parse(own))
        shared = directory / "pyproject.toml"
        if shared.is_file():
            section = _parse(shared).get("tool", {}).get("ckptool")
            if section is not None:
                return _decode(shared, section)
    return Config()


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(path, f"is not valid TOML: {error}") from error
    except OSError as error:
        raise ConfigError(path, error.strerror or str(error)) from error


def _decode(path: Path, section: dict[str, Any]) -> Config:
    try:
        return Config(msgspec.convert(section, Settings), path.parent)
    except msgspec.ValidationError as error:
        raise ConfigError(path, _explain(str(error))) from error


def _explain(message: str) -> str:
    """Turn msgspec's sentence about an unknown field into one with a suggestion."""
    unknown = re.match(r"Object contains unknown field `(.*?)`(.*)", message)
    if unknown is None:
        return message
    fields = {f.encode_name for t in (Settings, ModelEntry) for f in msgspec.structs.fields(t)}
    known = sorted(fields)
    close = get_close_matches(unknown[1], known, n=1)
    hint = f"did you mean `{close[0]}`?" if close else f"known are {', '.join(known)}"
    return f"unknown key `{unknown[1]}`{unknown[2]}; {hint}"
