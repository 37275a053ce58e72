"""Checkpoints of the models of a pipeline -> one Checkpoint, its keys below the models' names."""

from collections.abc import Iterator, Mapping

from msgspec.structs import replace

from ckptool.locations import Location
from ckptool.model import Checkpoint, Container, ContainerIssue, IssueKind, Skipped, StateDict

_SAFETENSORS = frozenset({Container.SAFETENSORS, Container.SHARDED_SAFETENSORS})


def merge_components(folder: Location, components: Mapping[str, Checkpoint]) -> Checkpoint:
    """Return the checkpoint of a folder, whose state has the first state of each component.

    Args:
        folder: the folder of the pipeline.
        components: name of a component -> its checkpoint.
    """
    parts = components.items()
    is_safetensors = all(part.container in _SAFETENSORS for part in components.values())
    return Checkpoint(
        path=folder,
        container=Container.SHARDED_SAFETENSORS if is_safetensors else Container.SHARDED_TORCH,
        nbytes=sum(part.nbytes for part in components.values()),
        states=(_merge_states(components),),
        globals=tuple(dict.fromkeys(name for _, part in parts for name in part.globals)),
        damage=_find_reason(components, "damage"),
        skipped=tuple(dict.fromkeys(_iter_skipped(components, "skipped"))),
        unread=tuple(_iter_skipped(components, "unread")),
        files=tuple(file for _, part in parts for file in (part.files or (part.path,))),
        faults=tuple(_iter_faults(components)),
        load_refusal=_find_reason(components, "load_refusal"),
        opaque=tuple(_iter_skipped(components, "opaque")),
        weights_only_refusal=_find_reason(components, "weights_only_refusal"),
    )


def _merge_states(components: Mapping[str, Checkpoint]) -> StateDict:
    states = {name: part.states[0] for name, part in components.items() if part.states}
    return StateDict(
        "",
        {
            f"{name}.{key}": replace(tensor, key=f"{name}.{key}")
            for name, state in states.items()
            for key, tensor in state.tensors.items()
        },
        non_tensors={
            f"{name}.{key}": text
            for name, state in states.items()
            for key, text in state.non_tensors.items()
        },
    )


def _iter_skipped(components: Mapping[str, Checkpoint], field: str) -> Iterator[Skipped]:
    for name, part in components.items():
        for skipped in getattr(part, field):
            yield replace(skipped, what=f"{name}: {skipped.what}")


def _iter_faults(components: Mapping[str, Checkpoint]) -> Iterator[ContainerIssue]:
    for name, part in components.items():
        for issue in part.faults:
            # The key of these two is a sentence; a component is part of the merged state.
            if issue.kind in {IssueKind.UNREACHED, IssueKind.NESTED}:
                yield replace(issue, kind=IssueKind.UNREACHED, key=f"{name}: {issue.key}")
            else:
                yield replace(issue, key=f"{name}.{issue.key}" if issue.key else issue.key)


def _find_reason(components: Mapping[str, Checkpoint], field: str) -> str:
    """Return the first reason that a component has, "" if none has one."""
    reasons = ((name, getattr(part, field)) for name, part in components.items())
    return next((f"{name}: {reason}" for name, reason in reasons if reason), "")
