"""WriteJob -> file: written to a temporary path, read back, loaded, then renamed to its target."""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ckptool.formats import safetensors_writer, torch_zip_writer
from ckptool.formats.atomic import Pending, commit, failing, pending
from ckptool.formats.blobs import Progress, Sink
from ckptool.formats.limits import Limits
from ckptool.formats.safetensors import VERSIONS
from ckptool.migration import provenance, ties
from ckptool.migration.ahead import LEAST, Ahead
from ckptool.migration.draft import Draft, Item
from ckptool.migration.execute import blob
from ckptool.migration.plan import Plan
from ckptool.migration.prints import Fingerprints
from ckptool.migration.provenance import Digests
from ckptool.migration.readback import read_back
from ckptool.migration.torch_file import torch_file
from ckptool.model import State

SAFETENSORS, TORCH = "safetensors", "pth"
FORMAT = ("format", "pt")
_RESERVE: Final = 64 << 10
_ENTRY: Final = 256
"""Header bytes per tensor besides its key; an entry needs half, a plan may lengthen it."""
_ANY: Final = ("utf-8", "surrogatepass")
_PAGE: Final = 4096


@dataclass(frozen=True, slots=True)
class Job:
    """A draft to write, its target, and the checks to pass before the rename."""

    draft: Draft
    plan: Plan
    target: Path
    to: str
    force: bool
    recorded: bool
    """Whether the provenance record is written."""
    changed: bool
    """Whether the state_dict differs from the source's."""
    limits: Limits
    progress: Progress
    unchanged: Callable[[], None]
    """Raises if a source file has changed."""
    verify: Callable[[Path], None]
    """Raises if the file at a path fails its checks."""
    prints: Callable[[State], Fingerprints]
    """Returns the fingerprints of the source's state_dict by key."""
    ahead: Ahead
    """Copy that was started before the plan was known."""
    links: bool = True
    """Whether unchanged shards may be hard links to the source's files."""


def write(job: Job) -> Digests:
    """Write the result; return the content digests of the source's and the result's state_dict.

    Raises:
        WriteError: the file could not be completed; the target is unchanged.
        ReadError: a source can no longer be read.
    """
    with ExitStack() as stack:
        out = job.ahead.out or stack.enter_context(pending(job.target, force=job.force))
        with failing(job.target):
            return _written(job, out, stack)


def _written(job: Job, out: Pending, stack: ExitStack) -> Digests:
    with Sink(job.target, out.descriptor, job.progress) as sink:
        begin = _safetensors if job.to == SAFETENSORS else _torch
        finish = begin(job, sink)
        prints = job.prints if job.recorded else None
        proved = job.ahead.proved()
        with ThreadPoolExecutor(2) as pool:
            # Sync and read-back run while the file is loaded into the module.
            synced = pool.submit(out.sync)
            read = pool.submit(
                read_back, job.draft, out.path, job.target, prints, job.limits, proved
            )
            job.verify(out.path)
            digests = read.result()
            synced.result()
        finish(digests)
    outputs = [out]
    if job.to == TORCH and job.recorded:
        # The record is renamed first: once the result has its name, its record exists.
        outputs.insert(0, _beside(job, digests, stack))
    commit(*outputs, check=job.unchanged)
    return digests


Finish = Callable[[Digests], None]


def _safetensors(job: Job, sink: Sink) -> Finish:
    items, tied = ties.split_ties(job.draft)
    order = stored(items)
    room = room_for(job.draft.state)

    def head(digests: Digests) -> bytes:
        return safetensors_writer.header(order, metadata(job, tied, digests), room)

    sink.write(head(Digests()))
    kept = job.ahead.keep(sink.position, [tensor.blob.span for tensor in order])
    sink.position += sum(tensor.blob.nbytes for tensor in order[:kept])
    for tensor in order[kept:]:
        sink.append(tensor.blob)
    sink.end()

    def finish(digests: Digests) -> None:
        if job.recorded:
            sink.patch(0, head(digests))

    return finish


def stored(items: Mapping[str, Item]) -> list[safetensors_writer.Stored]:
    """Return the tensors of a safetensors file in file order.

    Within one element size, tensors of the source come first, in its order, so that their
    positions are known before the plan is.
    """
    return safetensors_writer.ordered([_stored(key, item) for key, item in items.items()])


def _stored(key: str, item: Item) -> safetensors_writer.Stored:
    run, own = blob(item), bool(item.origin) and not item.casts
    place = item.origin if own else key
    return safetensors_writer.Stored(key, item.dtype, item.tensor.shape, run, not own, place)


def room_for(state: State) -> int:
    """Return the minimum header size in bytes of a large file, so that plans do not move data."""
    if sum(tensor.nbytes for tensor in state.tensors.values()) < LEAST:
        return 0
    length = _RESERVE + sum(len(key.encode(*_ANY)) + _ENTRY for key in state.tensors)
    return length + -length % _PAGE


def _torch(job: Job, sink: Sink) -> Finish:
    made = torch_file(job.draft, job.limits, changed=job.changed)
    torch_zip_writer.write(sink, made.pickle, made.storages)
    return lambda _: None


def metadata(job: Job, tied: Mapping[str, str], digests: Digests) -> dict[str, str]:
    """Return safetensors' `__metadata__`: the source's, versions, ties and provenance."""
    draft = job.draft
    found = dict([FORMAT])
    if draft.checkpoint.container.value.endswith(SAFETENSORS):
        ours = (VERSIONS, ties.KEY, provenance.KEY)
        found |= {k: v for k, v in draft.checkpoint.metadata.items() if k not in ours}
    if draft.versions is not None:
        found[VERSIONS] = json.dumps(draft.versions)
    if tied:
        found[ties.KEY] = ties.text(tied)
    if job.recorded:
        found[provenance.KEY] = record(job, digests)
    return found


def record(job: Job, digests: Digests) -> str:
    source = job.draft.checkpoint
    return provenance.record(source.path.name, source.container.value, job.plan, digests)


def _beside(job: Job, digests: Digests, stack: ExitStack) -> Pending:
    name = job.target.with_name(job.target.name + provenance.SUFFIX)
    out = stack.enter_context(pending(name, force=True))
    with Sink(name, out.descriptor, lambda _: None) as sink:
        sink.write(record(job, digests).encode() + b"\n")
    return out
