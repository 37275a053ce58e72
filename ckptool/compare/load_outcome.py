"""LoadOutcome: what a module's own `load_state_dict` does with a state, and what that changes."""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from math import prod

from msgspec import Struct

from ckptool.model import ModuleInfo, StateDict, TensorInfo


class LoadStepKind(StrEnum):
    """What loading code does with one key."""

    RENAMED = "renamed"
    RESHAPED = "reshaped"
    """The elements of the file's tensor, all of them and in their order, in a different shape."""
    PERMUTED = "permuted"
    """The elements of the file's tensor in a different order: transposed, for example."""
    SLICED = "sliced"
    """Some of the elements of the file's tensor."""
    ADDED = "added"
    """The file has no such key: the module's own code gives its value."""
    COMPUTED = "computed"
    """The value is made of the file's tensors, or of something else."""
    DISCARDED = "discarded"
    """A key of the file that nothing in the module takes."""
    PARTIAL = "partial"
    """Some of its elements do not come from the file: they keep initial values, or are drawn."""
    CONVERTED = "converted"
    """A framework's loader makes it of other tensors of the file."""
    LOST = "lost"
    """A key of the module that keeps its initial value, without the loader saying so."""


class KeptElements(Struct, frozen=True):
    """Elements of a tensor of the module that do not come from the file, after a load."""

    count: int
    numel: int
    is_drawn: bool
    """Whether the loading code draws them anew; else they are initial values."""


class LoadStep(Struct, frozen=True):
    """What a module's own loading code does with one key, where it is not a copy by name."""

    kind: LoadStepKind
    key: str
    """Key of the module; for DISCARDED the key of the file."""
    file_key: str = ""
    """Key of the file whose tensor it is, "" if there is none or it is the same."""
    operation: str = ""
    """For CONVERTED what is done: "stacked, concatenated"."""
    file_keys: tuple[str, ...] = ()
    """For CONVERTED all keys of the file that it is made of."""
    kept: KeptElements | None = None
    """For PARTIAL, and for LOST where that was measured, what does not come from the file."""


class LoadOutcome(Struct, frozen=True):
    """Result of asking the module's own `load_state_dict` for a strict load."""

    error: str = ""
    """What `load_state_dict(strict=True)` raises; "" if it succeeds."""
    missing_keys: tuple[str, ...] | None = ()
    """Keys that torch found missing, also if the module's own code drops them; None: not known."""
    unexpected_keys: tuple[str, ...] | None = ()
    sources: Mapping[str, str | None] = {}
    """Key of the module -> key of the file whose tensor it has after the load, "" if its value was
    computed, None if it still has its initial value; empty if the load raises."""
    rearranged_keys: frozenset[str] = frozenset()
    """Keys of `sources` that have only some of the elements, or in a different order."""
    kept: Mapping[str, KeptElements] = {}
    """Of computed tensors: what does not come from the file. Only where that was measured."""
    has_read_values: bool = False
    """Whether the loading code needed the values of the file."""
    value_use: str = ""
    """What the loading code asked of tensors without memory, so that a load with values may do
    something else; "" if nothing."""

    @property
    def is_strict(self) -> bool:
        return not self.error


def find_load_steps(
    outcome: LoadOutcome, state: StateDict, module: ModuleInfo, given_keys: Mapping[str, str]
) -> Iterator[LoadStep]:
    """Yield what a strict load that succeeds does in addition to copying tensors by name.

    Args:
        outcome: of the load.
        state: the file's state.
        module: the module.
        given_keys: missing keys that were given all the same, tied to another key.
    """
    swallowed = set(outcome.missing_keys or ())
    for key, module_tensor in module.saved_tensors.items():
        source = outcome.sources.get(key, key)
        tensor = state.tensors.get(key)
        if not source:
            is_in_file = tensor is not None or key in given_keys
            yield _name_unmatched(key, outcome, is_in_file=is_in_file, is_missing=key in swallowed)
        elif key in outcome.rearranged_keys:
            kind = _classify_rearrangement(module_tensor.tensor, state.tensors.get(source))
            yield LoadStep(kind, key, "" if source == key else source)
        elif source not in (key, given_keys.get(key)):
            yield LoadStep(LoadStepKind.RENAMED, key, source)
        elif tensor is not None and tensor.shape != module_tensor.tensor.shape:
            yield LoadStep(LoadStepKind.RESHAPED, key)
    used_keys = {source for source in outcome.sources.values() if source}
    computes = any(source == "" for source in outcome.sources.values())
    for key in state.tensors:
        if key not in used_keys and key not in module.saved_tensors and not computes:
            yield LoadStep(LoadStepKind.DISCARDED, key)


def _name_unmatched(
    key: str, outcome: LoadOutcome, *, is_in_file: bool, is_missing: bool
) -> LoadStep:
    """Return the step of a key whose value is no tensor of the file: initial, or computed."""
    source, kept = outcome.sources[key], outcome.kept.get(key)
    is_kept = source is None or (kept is not None and kept.count == kept.numel)
    if is_kept and (is_in_file or is_missing):
        return LoadStep(LoadStepKind.LOST, key, kept=kept)
    if is_kept or not (is_in_file or kept):
        return LoadStep(LoadStepKind.ADDED, key)
    kind = LoadStepKind.COMPUTED if kept is None else LoadStepKind.PARTIAL
    return LoadStep(kind, key, kept=kept)


def _classify_rearrangement(tensor: TensorInfo, file_tensor: TensorInfo | None) -> LoadStepKind:
    count = prod(tensor.shape)
    file_count = count if file_tensor is None else prod(file_tensor.shape)
    if count > file_count:  # expanded
        return LoadStepKind.COMPUTED
    return LoadStepKind.SLICED if count < file_count else LoadStepKind.PERMUTED
