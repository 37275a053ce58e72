"""Paths and live objects -> Checkpoints: what a comparison or a digest is made of."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ckptool.commands.sources.checkpoint_paths import (
    PathLike,
    is_live,
    open_checkpoint_or_stdin,
    require_path,
)
from ckptool.commands.sources.roles import parse_roles, restrict_to_roles
from ckptool.compare.states import find_distributed_key
from ckptool.errors import UsageError
from ckptool.formats.limits import Limits
from ckptool.model import Checkpoint, Container

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def open_sources(
    sources: "Sequence[PathLike | nn.Module | Mapping[str, Any]]",
    limits: Limits,
    roles: Sequence[str] | None = None,
) -> Iterator[tuple[Checkpoint, ...]]:
    """Describe paths and live objects; what is live can be read until the block ends.

    Args:
        sources: paths, live modules, state_dicts.
        limits: bounds on the memory and time that reading may take.
        roles: names in `ROLES`: tensors of other roles are left out; None for all.

    Raises:
        ReadError: a file cannot be read.
        ModuleError: a module cannot be examined.
        UsageError: an object is neither, or has only one rank's part of its tensors; or `roles` are
            unknown, or there is no module.
    """
    kinds = None if roles is None else parse_roles(roles)
    paths = [require_path(source) for source in sources if not is_live(source)]
    if len(paths) == len(sources):
        checkpoints = tuple(open_checkpoint_or_stdin(path, limits) for path in paths)
        yield checkpoints if kinds is None else restrict_to_roles(checkpoints, kinds)
        return
    from ckptool.modules.live.live_checkpoint import LiveObjects

    # A file has no attributes to compare them with.
    are_modules = all(hasattr(source, "named_modules") for source in sources)
    with LiveObjects(limits, with_attributes=are_modules) as live_objects:
        checkpoints = tuple(
            live_objects.describe(source)
            if is_live(source)
            else open_checkpoint_or_stdin(require_path(source), limits)
            for source in sources
        )
        _reject_rank_parts(checkpoints)
        yield checkpoints if kinds is None else restrict_to_roles(checkpoints, kinds)


def _reject_rank_parts(checkpoints: Sequence[Checkpoint]) -> None:
    """Refuse to take one rank's part for the whole; two parts of one rank can be compared.

    Raises:
        UsageError: a live object has DTensors, and nothing that it is compared with has.
    """
    keys = [find_distributed_key(checkpoint) for checkpoint in checkpoints]
    if len(keys) > 1 and all(keys):
        return
    for checkpoint, key in zip(checkpoints, keys, strict=True):
        if key and checkpoint.container is Container.LIVE:
            raise UsageError(
                f"{checkpoint.path}: `{key}` is a DTensor, of which this rank has only a part: "
                "gather the state on all ranks first, by get_model_state_dict(model, "
                "options=StateDictOptions(full_state_dict=True)), and give that"
            )
