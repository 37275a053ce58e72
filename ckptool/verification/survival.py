"""Save and load into another instance -> levels "round trip" and "survival"."""

import io
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ckptool.errors import ModuleError
from ckptool.model import Constancy, Kind, ModuleState
from ckptool.modules.tensors import is_lazy, same_bytes
from ckptool.modules.usercode import UserCodeError, user_code
from ckptool.modules.walk import walk
from ckptool.verification import cpu
from ckptool.verification.facts import Level, LevelResult, Status
from ckptool.verification.instances import Maker
from ckptool.verification.load import Subject, load
from ckptool.verification.outputs import difference
from ckptool.verification.passes import Inputs

_NO_OTHER = "an instance cannot be built again: name its class to know"
_OTHER_SEED = 1


class Makes(Protocol):
    """Creates equal instances; its `factory` builds others under another seed."""

    @property
    def maker(self) -> Maker: ...

    def make(self) -> nn.Module: ...


def round_trip(one: Makes, inputs: Inputs | None, reason: str) -> tuple[LevelResult, str]:
    """Save, load into an instance built under another seed, and compare the outputs of both.

    Returns:
        The level, and the difference of the outputs as text, "" if none.
    """
    why = reason if inputs is None else "" if one.maker.rebuilds else _NO_OTHER
    if inputs is None or why:
        return LevelResult(Level.ROUND_TRIP, Status.SKIPPED, why), ""
    module = one.make()
    try:
        again = _reloaded(one, module)
    except (ModuleError, UserCodeError) as error:
        failed = f"saving and loading raised {error}"
        return LevelResult(Level.ROUND_TRIP, Status.FAILED, failed, "cpu"), ""
    first, second = cpu.run(module, inputs), cpu.run(again, inputs)
    raised = first.error or second.error
    if raised is not None:
        failed = f"the pass on the CPU raised {raised}"
        return LevelResult(Level.ROUND_TRIP, Status.INCONCLUSIVE, failed, "cpu"), ""
    apart = difference(second.output, first.output)
    if apart.exact:
        return LevelResult(Level.ROUND_TRIP, Status.PASSED, "", "cpu", (apart.words,)), ""
    repeated = difference(cpu.run(one.make(), inputs).output, first.output)
    if not repeated.exact:
        unsteady = "two passes of the same module under the same seed differ"
        return LevelResult(Level.ROUND_TRIP, Status.INCONCLUSIVE, unsteady, "cpu"), ""
    words = f"{apart.first}, {apart.words}"
    return LevelResult(Level.ROUND_TRIP, Status.FAILED, words, "cpu"), words


def survival(one: Subject, state: ModuleState) -> tuple[LevelResult, tuple[str, ...]]:
    """Change all state, save, load into a fresh instance, and find state that was not restored.

    Returns:
        The level, and the paths of lost state; without buffers that are meant not to be saved.
    """
    if not one.maker.rebuilds:
        return LevelResult(Level.SURVIVAL, Status.SKIPPED, _NO_OTHER), ()
    try:
        module = one.make()
        with torch.no_grad(), user_code():
            _change(module)
        again = _reloaded(one, module)
    except (ModuleError, UserCodeError) as error:
        failed = f"changing, saving and loading raised {error}"
        return LevelResult(Level.SURVIVAL, Status.INCONCLUSIVE, failed, "cpu"), ()
    lost = _lost(module, again)
    meant = tuple(path for path in lost if _rebuilt(state, path))
    grave = tuple(path for path in lost if path not in meant)
    details = (
        (f"not saved, as registered, and rebuilt by the constructor: {_few(meant)}",)
        if meant
        else ()
    )
    if grave:
        reason = f"changed, saved, loaded, and lost: {_few(grave)}"
        return LevelResult(Level.SURVIVAL, Status.FAILED, reason, "cpu", details), grave
    return LevelResult(Level.SURVIVAL, Status.PASSED, "", "cpu", details), ()


def _reloaded(one: Makes, module: nn.Module) -> nn.Module:
    """Return an instance built under another seed, with the state of `module` saved and loaded."""
    again = one.maker.make(_OTHER_SEED)
    file = io.BytesIO()
    with user_code():
        torch.save(module.state_dict(), file)
        file.seek(0)
        saved: Mapping[str, Any] = torch.load(file, weights_only=True)
    load(again, saved, one.maker.target)
    return again


def _change(module: nn.Module) -> None:
    """Change every storage and every array that `module` holds, each once."""
    seen: set[int] = set()
    for found in walk(module).found:
        value = found.value
        if not isinstance(value, Tensor):
            if value.dtype.kind in "biufc" and value.flags.writeable:
                value[...] = value + 1 if value.dtype.kind != "b" else ~value
        elif not (is_lazy(value) or value.layout is not torch.strided or value.is_quantized):
            storage = value.untyped_storage()
            if storage._cdata not in seen and storage.nbytes():  # noqa: SLF001
                seen.add(storage._cdata)  # noqa: SLF001
                _change_all(_whole(value))


def _whole(tensor: Tensor) -> Tensor:
    """Return a 1-D view of the whole storage of `tensor`, in its dtype."""
    storage = tensor.untyped_storage()
    count = storage.nbytes() // tensor.element_size()
    return torch.empty(0, dtype=tensor.dtype).set_(storage, 0, (count,), (1,))


def _change_all(flat: Tensor) -> None:
    if flat.dtype == torch.bool:
        flat.logical_not_()
    elif flat.dtype.itemsize == 1 and flat.dtype.is_floating_point:
        # No arithmetic for 8-bit floats: flip a bit instead.
        flat.view(torch.uint8).bitwise_xor_(1)
    else:
        more = flat + 1
        if flat.dtype.is_floating_point:
            # x + 1 leaves large numbers, infinity and NaN unchanged: set those to 0.
            more = torch.where((more == flat) | ~torch.isfinite(flat), torch.zeros_like(flat), more)
        flat.copy_(more)


def _lost(module: nn.Module, again: nn.Module) -> tuple[str, ...]:
    found = {one.path: one.value for one in walk(again).found}
    return tuple(
        one.path
        for one in walk(module).found
        if one.path not in found or same_bytes(one.value, found[one.path]) is False
    )


def _rebuilt(state: ModuleState, path: str) -> bool:
    """Whether it is a non-persistent buffer that every build recreates with the same value."""
    held = state.held.get(path)
    return (
        held is not None
        and held.kind is Kind.NON_PERSISTENT_BUFFER
        and held.constancy is Constancy.CONSTANT
    )


def _few(paths: tuple[str, ...]) -> str:
    shown = ", ".join(f"`{path}`" for path in paths[:5])
    return shown + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")
