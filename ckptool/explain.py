"""ModuleDiff or CheckpointDiff x key -> facts about the key, as (label, value) pairs."""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches

from ckptool.compare import Loading, Revision
from ckptool.errors import UsageError
from ckptool.model import Held, TensorInfo

Facts = Iterator[tuple[str, str]]


def explain_loading(loading: Loading, key: str) -> tuple[tuple[str, str], ...]:
    """Return the facts about `key` in the file and in the module.

    Raises:
        UsageError: neither has the key.
    """
    held = loading.module.held.get(key)
    tensor = loading.state.tensors.get(key) or loading.state.unsaved.get(key)
    if held is None and tensor is None:
        _refuse(key, (*loading.module.held, *loading.state.tensors))
    return (
        *_tensor("in the file", tensor),
        *_held(held),
        *_relations(loading, key),
    )


def explain_revision(revision: Revision, key: str) -> tuple[tuple[str, str], ...]:
    """Return the facts about `key` in both files.

    Raises:
        UsageError: neither has the key.
    """
    old, new = revision.old_tensors.get(key), revision.new_tensors.get(key)
    if old is None and new is None:
        _refuse(key, (*revision.old_tensors, *revision.new_tensors))
    return (
        *_tensor("in the old file", old),
        *_tensor("in the new file", new),
        ("values", _values(revision, key)),
        *_figures(revision, key),
    )


def _refuse(key: str, known: Iterable[str]) -> None:
    close = get_close_matches(key, list(known), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise UsageError(f"--explain {key}: neither side has this key{hint}")


def _tensor(side: str, tensor: TensorInfo | None) -> Facts:
    if tensor is None:
        yield side, "not there"
        return
    yield side, f"{tensor.dtype} {list(tensor.shape)}, {tensor.nbytes} bytes, {tensor.layout}"
    if tensor.storage is not None:
        storage = tensor.storage
        yield (
            f"{side}: storage",
            f"{storage.key!r}, {storage.nbytes} bytes, saved on {storage.device}",
        )
        if tensor.span is not None:
            span = tensor.span
            yield f"{side}: bytes", f"{span.offset} to {span.offset + span.nbytes} of {span.path}"


def _held(held: Held | None) -> Facts:
    if held is None:
        yield "in the module", "not there"
        return
    yield (
        "in the module",
        f"{held.kind} of {held.owner}, {held.tensor.dtype} {list(held.tensor.shape)}",
    )
    yield "saved by state_dict()", "yes" if held.saved else "no"
    yield "value on every construction", str(held.constancy)
    yield "follows .to(device)", "yes" if held.follows_to else "no"
    yield "follows .half()", "yes" if held.follows_dtype else "no"
    for name, place in (
        ("assigned", held.where),
        ("used in forward", held.used),
        ("written outside the constructor", held.written),
        ("shares the memory of", held.alias_of),
    ):
        if place:
            yield name, place


def _relations(loading: Loading, key: str) -> Facts:
    rewritten = loading.rewrite.keys if loading.rewrite else {}
    for old, new in rewritten.items():
        if key in (old, new):
            yield (
                "once a wrapper's segments are rewritten",
                f"{old} in the file is {new} in the module",
            )
    for missing, found in loading.renames.items():
        if key in (missing, found):
            yield "probably renamed", f"{found} in the file is {missing} in the module"
    if key in loading.same_value:
        same = loading.same_value[key]
        yield "value against the module's own", "equal" if same else "different"


def _values(revision: Revision, key: str) -> str:
    if revision.differing is None:
        return "not looked at"
    if key in revision.differing:
        return "different"
    if key in revision.untold or key not in revision.old_tensors or key not in revision.new_tensors:
        return "not compared"
    return "equal"


def _figures(revision: Revision, key: str) -> Facts:
    figures = revision.measured.get(key)
    if figures is None:
        return
    yield "elements changed", f"{figures.changed} of {figures.elements}"
    for name, figure in (
        ("largest difference", figures.max_abs),
        ("mean difference", figures.mean_abs),
        ("relative change (L2)", figures.relative_l2),
        ("cosine", figures.cosine),
    ):
        yield name, "none" if figure is None else f"{figure:g}"
    yield "not finite", f"{figures.old_nonfinite} in the old, {figures.new_nonfinite} in the new"
    if revision.old_tensors[key].dtype != revision.new_tensors[key].dtype:
        yield "nothing but rounding", "yes" if figures.rounding else "no"
    names = ("below 1e-12", *(f"1e{n} to 1e{n + 1}" for n in range(-12, 3)), "1e3 and above")
    for name, number in zip(names, figures.histogram, strict=True):
        if number:
            yield f"differences {name}", str(number)
