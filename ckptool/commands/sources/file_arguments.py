"""Checkpoint -> the constructor arguments that it brings: plain data, never executed."""

from collections.abc import Iterator, Mapping
from typing import Final

from msgspec import Struct

from ckptool.config import TRUST_RULE
from ckptool.errors import UsageError
from ckptool.model import Checkpoint
from ckptool.phrases import format_literal, join_limited

Arguments = Mapping[str, object]
EVERY_NAME: Final = "**"
"""Name of the arguments that stand for all items of a mapping, as in a call."""
_USUAL_PLACES: Final = (
    "hyper_parameters", "model_args", "config", "cfg", "args", "hparams", "model_config",
)  # fmt: skip
"""Keys under which training code saves the arguments of its module, most telling first."""
_TRAINER_PLACES: Final = frozenset(
    {"callbacks", "loops", "lr_schedulers", "lr_scheduler", "datamodule_hyper_parameters"}
)
_MAX_OFFERS: Final = 8
_MAX_OFFERED_NAMES: Final = 200


class FilePlace(Struct, frozen=True):
    """A value in the checkpoint, given as an argument: `@cfg`, `@hyper_parameters.model`."""

    at: str
    """Dotted place of it in the file."""

    def __str__(self) -> str:
        return f"@{self.at}"


class FileArguments(Struct, frozen=True):
    """Constructor arguments that a checkpoint brings."""

    defaults: Arguments = {}
    """Those that are used where the constructor accepts them and no other is given."""
    values: Arguments = {}
    """Those that were asked for by name."""
    offers: Mapping[str, tuple[str, ...]] = {}
    """What could be asked for: place of a mapping -> its names."""
    given_names: frozenset[str] = frozenset()
    """Names in `defaults` that the user gave: they are not from the file."""


def parse_place(text: str) -> FilePlace | None:
    """Return the place that "@cfg" names; None if the text names none."""
    return FilePlace(text[1:]) if len(text) > 1 and text.startswith("@") else None


def format_argument(value: object) -> str:
    """Return an argument as `-k` takes it."""
    return str(value) if isinstance(value, FilePlace) else format_literal(value)


def normalize_kwargs(kwargs: "Arguments | str | None") -> Arguments:
    """Return arguments as a mapping; "@model_args" stands for the items at that place of the file.

    Raises:
        UsageError: it is another text.
    """
    if not isinstance(kwargs, str):
        return kwargs or {}
    place = parse_place(kwargs)
    if place is None:
        raise UsageError(f"kwargs={kwargs!r}: expected a mapping, or '@place' of one in the file")
    return {EVERY_NAME: place}


def parse_configured_kwargs(kwargs: Arguments | str) -> Arguments:
    """Return arguments of the configuration, with a `FilePlace` for each "@place" in them.

    `{"**": "@cfg", "d": 3}` takes all items of the file's `cfg` but `d`.

    Raises:
        UsageError: it is another text than "@place".
    """
    return normalize_kwargs(kwargs) if isinstance(kwargs, str) else _parse_fields(kwargs)


def _parse_fields(fields: Arguments) -> dict[str, object]:
    return {name: _parse_configured_value(value) for name, value in fields.items()}


def _parse_configured_value(value: object) -> object:
    if isinstance(value, dict):
        return _parse_fields(value)
    if not isinstance(value, str):
        return value
    return value[1:] if value.startswith("@@") else parse_place(value) or value


def read_file_arguments(checkpoint: Checkpoint, kwargs: Arguments) -> FileArguments:
    """Return the arguments that `kwargs` take from the file; without `kwargs`, Lightning's.

    Raises:
        UsageError: there is no plain data at a place, or arguments of files are refused.
    """
    places = dict(_iter_places(kwargs))
    if not TRUST_RULE.get().uses_file_kwargs:
        for name, place in places.items():
            option = _format_option(name, place)
            raise UsageError(f"{option}: arguments of a file are refused (--no-file-kwargs)")
        return FileArguments()
    offers = list_offers(checkpoint)
    if not kwargs:
        return FileArguments(read_hyper_parameters(checkpoint), offers=offers)
    values = {name: _read_named(checkpoint, name, place, offers) for name, place in places.items()}
    fields = values.pop(EVERY_NAME, None)
    defaults = {str(n): v for n, v in fields.items()} if isinstance(fields, dict) else {}
    return FileArguments(defaults, values, offers)


def read_hyper_parameters(checkpoint: Checkpoint) -> Arguments:
    """Return a Lightning checkpoint's `hyper_parameters` if they are plain data, else {}."""
    values = {entry.at: entry.value for entry in checkpoint.entries}
    fields = values.get("hyper_parameters")
    if not isinstance(fields, dict):
        return {}
    arguments = {name: value for name, value in fields.items() if isinstance(name, str)}
    # save_hyperparameters() of a constructor with one argument, a configuration, names that.
    name = values.get("hparams_name")
    is_one_argument = isinstance(name, str) and name.isidentifier() and name != "kwargs"
    return {str(name): arguments, **arguments} if is_one_argument else arguments


def fill_places(
    kwargs: Arguments, file_arguments: FileArguments, prefix: str = ""
) -> dict[str, object]:
    """Return `kwargs` with the values of the file; without EVERY_NAME, whose items are defaults.

    Raises:
        UsageError: a value of the file is not known, since no checkpoint is named.
    """
    arguments: dict[str, object] = {}
    for name, value in kwargs.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict):
            arguments[name] = fill_places(value, file_arguments, f"{path}.")
        elif not isinstance(value, FilePlace):
            arguments[name] = value
        elif path in file_arguments.values:
            arguments[name] = file_arguments.values[path]
        elif path != EVERY_NAME or not (file_arguments.defaults or file_arguments.offers):
            option = _format_option(path, value)
            raise UsageError(f"{option} is in a checkpoint, and none is named here")
    return arguments


def drop_places(kwargs: Arguments) -> dict[str, object]:
    """Return the arguments that are not taken from a file."""
    return {name: value for name, value in kwargs.items() if not isinstance(value, FilePlace)}


def has_places(kwargs: Arguments) -> bool:
    """Whether arguments are taken from the file."""
    return next(_iter_places(kwargs), None) is not None


def list_places(kwargs: Arguments) -> dict[str, str]:
    """Return the names of `kwargs` that are taken from the file, with the place in words."""
    return {name: f"`{place.at}` of the file" for name, place in _iter_places(kwargs)}


def list_offers(checkpoint: Checkpoint) -> dict[str, tuple[str, ...]]:
    """Return the places of mappings that may be constructor arguments, with their names.

    The usual places first, then other mappings at the top of the file, and the mappings in them.
    """
    names: dict[str, dict[str, None]] = {}
    inner_names: dict[str, dict[str, None]] = {}
    for entry in checkpoint.entries:
        place, dot, inner_place = entry.at.partition(".")
        if place in _TRAINER_PLACES or entry.value is None:
            continue
        if isinstance(entry.value, dict) and not dot:
            names.setdefault(place, {}).update(dict.fromkeys(map(str, entry.value)))
            inner_names |= {
                f"{place}.{key}": dict.fromkeys(map(str, child))
                for key, child in entry.value.items()
                if isinstance(child, dict) and len(inner_names) < _MAX_OFFERS
            }
        elif dot and place in _USUAL_PLACES:
            names.setdefault(place, {})[inner_place.partition(".")[0]] = None
    order: list[str] = [place for place in _USUAL_PLACES if place in names]
    order += [place for place in names if place not in _USUAL_PLACES]
    found_names = {place: names[place] for place in order} | inner_names
    return {
        place: tuple(fields)[:_MAX_OFFERED_NAMES]
        for place, fields in list(found_names.items())[:_MAX_OFFERS]
        if fields
    }


def _iter_places(kwargs: Arguments, prefix: str = "") -> Iterator[tuple[str, FilePlace]]:
    """Yield the arguments that are taken from the file; a field of one is "cfg.d"."""
    for name, value in kwargs.items():
        if isinstance(value, FilePlace):
            yield f"{prefix}{name}", value
        elif isinstance(value, dict):
            yield from _iter_places(value, f"{prefix}{name}.")


def _read_named(
    checkpoint: Checkpoint, name: str, place: FilePlace, offers: Mapping[str, tuple[str, ...]]
) -> object:
    value = read_place(checkpoint, place.at)
    option = _format_option(name, place)
    if value is None:
        has = f"; it has {join_limited([f'@{at}' for at in offers], 8)}" if offers else ""
        raise UsageError(f"{option}: {checkpoint.path} has no plain data at `{place.at}`{has}")
    if name == EVERY_NAME and not isinstance(value, dict):
        raise UsageError(f"{option}: `{place.at}` is {format_literal(value)}, not a mapping")
    return value


def read_place(checkpoint: Checkpoint, at: str) -> object:
    """Return the plain value at a dotted place; None if there is none.

    Of an object with fields that are no plain data, the others.
    """
    values = {entry.at: entry.value for entry in checkpoint.entries if entry.value is not None}
    steps = at.split(".")
    for length in range(len(steps), 0, -1):
        if ".".join(steps[:length]) in values:
            return _descend(values[".".join(steps[:length])], steps[length:])
    fields: dict[str, object] = {}
    for place, value in values.items():
        if place.startswith(f"{at}."):
            _set_nested(fields, place[len(at) + 1 :].split("."), value)
    return fields or None


def _descend(value: object, steps: list[str]) -> object:
    for step in steps:
        if isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        elif isinstance(value, dict) and step in value:
            value = value[step]
        else:
            return None
    return value


def _set_nested(fields: dict[str, object], steps: list[str], value: object) -> None:
    for step in steps[:-1]:
        child = fields.setdefault(step, {})
        if not isinstance(child, dict):
            return
        fields = child
    fields[steps[-1]] = value


def _format_option(name: str, place: FilePlace) -> str:
    return f"--kwargs {place}" if name == EVERY_NAME else f"-k {name}={place}"
