"""Random generators that the user's code holds -> which of them went on, and whose state is saved.

The global generators of torch, NumPy and Python are not among them: every script uses those.
"""

import random
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from types import FrameType
from typing import Any, Final

from ckptool.modules.tensors.elements import content_digest
from ckptool.modules.walk import get_qualified_name
from ckptool.tracing.quiet import is_own_code
from ckptool.tracing.records import TrainingObject
from ckptool.tracing.training_objects import SavedContent

KIND: Final = "random generator"
_MAX_DEPTH: Final = 4
_MAX_VALUES: Final = 10_000
"""Maximum values that one search visits."""
_MAX_FRAMES: Final = 200
_DATA_PACKAGE: Final = "torch.utils.data"
_FIRST_NUMBER: Final = 1 << 30
"""Generators are numbered from here on, apart from the objects that are counted."""


class RandomGenerators:
    """State of each generator when it was first seen, by the name that the script gives it."""

    def __init__(self) -> None:
        self._first_states: dict[str, tuple[int, str]] = {}
        """Name -> id of the generator, and digest of its state."""

    def note_states(self, modules: Iterable[Any]) -> None:
        """Remember the states of the generators that were not seen before."""
        for name, generator in iter_held_generators(modules):
            self._find_first_state(name, generator)

    def split_by_content(
        self, content: SavedContent, modules: Iterable[Any]
    ) -> tuple[tuple[TrainingObject, ...], tuple[TrainingObject, ...]]:
        """Return the generators that `content` has the state of, and the others that went on."""
        saved: list[TrainingObject] = []
        unsaved: list[TrainingObject] = []
        for name, generator in iter_held_generators(modules):
            first_state = self._find_first_state(name, generator)
            number = _FIRST_NUMBER + list(self._first_states).index(name)
            description = TrainingObject(number, KIND, _name_class(type(generator)), name=name)
            if _is_in_content(generator, content):
                saved.append(description)
            elif digest_generator(generator) != first_state:
                unsaved.append(description)
        return tuple(saved), tuple(unsaved)

    def _find_first_state(self, name: str, generator: Any) -> str:
        entry = self._first_states.get(name)
        if entry is None or entry[0] != id(generator):
            entry = self._first_states[name] = id(generator), digest_generator(generator)
        return entry[1]


def _name_class(cls: type) -> str:
    """Return the public name of a class: "numpy.random.Generator"."""
    steps = get_qualified_name(cls).split(".")
    return ".".join(step for step in steps if not step.startswith("_") or step == "__main__")


def digest_generator(generator: Any) -> str:
    """Return text that is equal for equal states; reading a state changes nothing."""
    if hasattr(generator, "getstate"):
        return repr(generator.getstate())
    if hasattr(generator, "bit_generator"):
        return repr(generator.bit_generator.state)
    state = generator.get_state()
    return content_digest(state) if hasattr(state, "untyped_storage") else repr(state)


def iter_held_generators(modules: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Yield (name, generator), each once, of what user code has in variables and attributes.

    That are the globals of the user's Python modules, the local variables of the user's functions
    that are running, the attributes of objects of the user's classes in them, of data loaders and
    samplers, and of `modules`.
    """
    holders = (*_iter_variables(), *_iter_module_attributes(modules))
    pending = [(name, value, 0) for name, value in holders][::-1]
    visited_ids: set[int] = set()
    for _ in range(_MAX_VALUES):
        if not pending:
            return
        name, value, depth = pending.pop()
        if id(value) in visited_ids:
            continue
        visited_ids.add(id(value))
        if _is_generator(value):
            yield name, value
        elif depth < _MAX_DEPTH:
            children = ((f"{name}{step}", child, depth + 1) for step, child in _iter_parts(value))
            pending.extend(islice(children, _MAX_VALUES))


def _iter_variables() -> Iterator[tuple[str, object]]:
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001
    for _ in range(_MAX_FRAMES):
        if frame is None:
            break
        if frame.f_locals is not frame.f_globals and is_own_code(frame.f_code.co_filename):
            yield from list(frame.f_locals.items())
        frame = frame.f_back
    for module in list(sys.modules.values()):
        attributes: dict[str, object] = getattr(module, "__dict__", {})
        file = attributes.get("__file__")
        if isinstance(file, str) and is_own_code(file):
            yield from list(attributes.items())


def _iter_module_attributes(modules: Iterable[Any]) -> Iterator[tuple[str, object]]:
    for module in modules:
        owner = type(module).__qualname__
        for prefix, member in type(module).named_modules(module):
            place = f"{owner}.{prefix}" if prefix else owner
            for name, value in vars(member).items():
                if _is_generator(value):
                    yield f"{place}.{name}", value


def _iter_parts(value: object) -> Iterator[tuple[str, object]]:
    """Yield (step, part) of a container, of an object of a user's class, and of a data loader."""
    if isinstance(value, dict):
        yield from ((f"[{key!r}]", child) for key, child in list(value.items()))
    elif isinstance(value, list | tuple):
        yield from ((f"[{index}]", child) for index, child in enumerate(value))
    elif hasattr(value, "__dict__") and _is_opened(type(value)):
        yield from ((f".{name}", child) for name, child in list(vars(value).items()))


def _is_opened(cls: type) -> bool:
    if cls.__module__.startswith(_DATA_PACKAGE):
        return True
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return isinstance(file, str) and is_own_code(file) and not issubclass(cls, type)


def _is_generator(value: object) -> bool:
    if isinstance(value, random.Random):
        return True
    torch, numpy = (sys.modules.get(name) for name in ("torch", "numpy"))
    return (torch is not None and isinstance(value, torch.Generator)) or (
        numpy is not None and isinstance(value, numpy.random.Generator | numpy.random.RandomState)
    )


def _is_in_content(generator: Any, content: SavedContent) -> bool:
    """Whether a saved object has the generator itself, or what it returns as its state."""
    if id(generator) in content.objects:
        return True
    if hasattr(generator, "getstate"):
        return any(state == generator.getstate() for state in content.tuples)
    if hasattr(generator, "bit_generator"):
        state = repr(generator.bit_generator.state)
        return any(_is_state_of(mapping, state) for _, mapping in content.mappings)
    state = generator.get_state()
    if hasattr(state, "untyped_storage"):
        return content.contains_tensor(state)
    return any(repr(saved) == repr(state) for saved in content.tuples)


def _is_state_of(mapping: Mapping[Any, Any], state: str) -> bool:
    return "bit_generator" in mapping and repr(dict(mapping)) == state
