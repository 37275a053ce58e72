"""A process of --resume-check -> SavedStateRecords, and its end after the first checkpoint."""

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ckptool.modules.tensors.elements import content_digest
from ckptool.modules.walk import get_qualified_name, get_written_name
from ckptool.tracing.origins import iter_places
from ckptool.tracing.quiet import torch_unobserved
from ckptool.tracing.random_generators import digest_generator, iter_held_generators
from ckptool.tracing.records import SavedStateRecord

if TYPE_CHECKING:
    from ckptool.tracing.process_trace import ProcessTrace

_MAX_TEXT_CHARS: Final = 100


class ResumeStates:
    """Counts optimizer steps, digests what is saved, and ends a process where it should stop.

    Rank 0 marks the step after which it has saved a module; every other rank digests its live state
    before its next step. Where gradients are reduced, that step waits for rank 0.
    """

    def __init__(self, trace: "ProcessTrace", *, stops: bool) -> None:
        """Register a hook before each optimizer step.

        Args:
            trace: of this process.
            stops: whether the process ends before the step that follows its first checkpoint.
        """
        from torch.optim.optimizer import register_optimizer_step_pre_hook

        self._trace = trace
        self._stops = stops
        self._step_count = 0
        self._has_saved = False
        register_optimizer_step_pre_hook(self._handle_step)

    def _handle_step(self, optimizer: object, args: object, kwargs: object) -> None:  # noqa: ARG002
        if self._stops and self._has_saved:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)  # as a job that is killed: nothing else is written
        if self._step_count and os.environ.get("RANK", "0") != "0" and self._marker.exists():
            self._trace.observe("the state of a rank", self._record_live_state)
        self._step_count += 1

    @property
    def _marker(self) -> Path:
        return Path(os.environ["CKPTOOL_TRACE"], f"saved-after-{self._step_count}-steps")

    def _record_live_state(self) -> None:
        self._trace.write_record(self._describe("", {}, has_model=False))

    def describe_save(self, file: str, content: object, *, has_model: bool) -> SavedStateRecord:
        """Describe a save that has ended."""
        self._has_saved = self._has_saved or self._step_count > 0
        with torch_unobserved():
            record = self._describe(file, dict(_iter_leaves(content)), has_model=has_model)
        if has_model and os.environ.get("RANK") == "0":
            self._marker.touch()
        return record

    def _describe(self, file: str, saved: dict[str, str], *, has_model: bool) -> SavedStateRecord:
        with torch_unobserved():
            live = {
                **dict(_iter_live_values(self._trace)),
                **dict(_iter_random_states()),
                **dict(_iter_generator_states(self._trace)),
            }
        return SavedStateRecord(
            file=file, step_count=self._step_count, has_model=has_model, saved=saved, live=live
        )


def _iter_leaves(content: object) -> Iterator[tuple[str, str]]:
    """Yield (key path, digest) of tensors and plain values; other objects are left out."""
    import torch

    for place, value in iter_places(content):
        name = ".".join(place)
        if isinstance(value, torch.Tensor):
            yield name, content_digest(value)
        elif isinstance(value, bool | int | float | str | None):
            yield name, repr(value)[:_MAX_TEXT_CHARS]


def _iter_live_values(trace: "ProcessTrace") -> Iterator[tuple[str, str]]:
    for module in trace.states.list_modules():
        state = trace.states.take_state(module)
        owner = get_written_name(module)
        for path, digest in trace.states.list_digests(module).items():
            yield f"`{path}` of {owner}", digest
        for path, value in state.snapshot.python_values.items():
            if trace.states.keeps_value(path, value):
                yield f"`{path}` of {owner}", value.text
    for kind in ("optimizer", "LR scheduler"):
        for value in trace.objects.list_objects(kind):
            yield from _iter_settings(kind, value)


def _iter_settings(kind: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield the learning rate of an optimizer, the step of a scheduler."""
    owner = get_qualified_name(type(value))
    if kind == "optimizer":
        for index, group in enumerate(value.param_groups):
            yield f"`param_groups[{index}]['lr']` of {owner}", repr(float(group["lr"]))
    else:
        yield f"`last_epoch` of {owner}", repr(getattr(value, "last_epoch", None))


def _iter_random_states() -> Iterator[tuple[str, str]]:
    """Yield the digests of the global random generators; reading them changes nothing."""
    import torch

    yield "the random state of torch", content_digest(torch.get_rng_state())
    yield "the random state of Python", str(hash(random.getstate()))
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        state = numpy.random.get_state()
        yield "the random state of NumPy", f"{content_digest(state[1])} {state[2]}"


def _iter_generator_states(trace: "ProcessTrace") -> Iterator[tuple[str, str]]:
    for name, generator in iter_held_generators(trace.states.list_modules()):
        yield f"the state of the random generator `{name}`", digest_generator(generator)
