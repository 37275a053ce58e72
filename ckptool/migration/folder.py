"""ShardLayout -> folder of shards: changed shards are written, unchanged ones linked or copied."""

import os
from collections.abc import Iterable
from dataclasses import replace as with_
from pathlib import Path

from msgspec.structs import replace

from ckptool.digests import content_digest
from ckptool.formats import safetensors_writer, sharded_writer
from ckptool.formats.atomic import commit, failing, pending
from ckptool.formats.blobs import Sink
from ckptool.migration import provenance, ties
from ckptool.migration.companions import carry, companions
from ckptool.migration.draft import Draft
from ckptool.migration.prints import Fingerprints
from ckptool.migration.provenance import Digests
from ckptool.migration.readback import read_back
from ckptool.migration.shards import Layout, Shard, lay_out, part
from ckptool.migration.write import Job, metadata, record, stored
from ckptool.model import State
from ckptool.values import fingerprint_many


def write_folder(job: Job, most: int | None) -> Digests:
    """Write the folder; return the digests of the rewritten shards and of their sources.

    Shards have at most `max_nbytes` bytes; None keeps the layout of a sharded source.

    Raises:
        WriteError: the folder could not be completed; the target is unchanged.
        ReadError: a source can no longer be read.
    """
    layout = lay_out(job.draft, most)
    with pending(job.target, force=job.force, folder=True) as out, failing(job.target):
        digests = _combined(_shard(job, layout, shard, out.path) for shard in layout.shards)
        weight_map = {key: shard.name for shard in layout.shards for key in shard.items}
        index = _index_metadata(job, layout, digests)
        carry(companions(job.draft.checkpoint), out.path)
        sharded_writer.write_index(out.path / layout.index, weight_map, index)
        job.verify(out.path)
        commit(out, check=job.unchanged)
    return digests


def _shard(job: Job, layout: Layout, shard: Shard, folder: Path) -> Digests | None:
    """Write, link or copy one shard into the folder; return digests only if it was written."""
    place = folder / shard.name
    if shard.kept is not None:
        sharded_writer.keep(shard.kept, place, job.progress, link=job.links)
        return None
    alone = with_(job, draft=part(job.draft, shard), recorded=False)
    # The index records the ties of all shards.
    here = {name: kept for name, kept in layout.ties.items() if kept in shard.items}
    descriptor = sharded_writer.create(place)
    try:
        with Sink(job.target, descriptor, job.progress) as sink:
            safetensors_writer.write(sink, stored(shard.items), metadata(alone, here, Digests()))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    draft = _with_ties(alone, here)
    return read_back(draft, place, job.target, _prints, job.limits)


def _prints(state: State) -> Fingerprints:
    """Return the fingerprints of one shard's tensors by key."""
    return dict(zip(state.tensors, fingerprint_many(state.tensors.values()), strict=True))


def _with_ties(job: Job, here: dict[str, str]) -> Draft:
    added = {name: job.draft.items[kept] for name, kept in here.items()}
    return replace(job.draft, items={**job.draft.items, **added})


def _combined(parts: Iterable[Digests | None]) -> Digests:
    found = [digests for digests in parts if digests is not None]
    if not found:
        return Digests("", "")
    return Digests(
        content_digest({str(n): d.source for n, d in enumerate(found)}),
        content_digest({str(n): d.result for n, d in enumerate(found)}),
    )


def _index_metadata(job: Job, layout: Layout, digests: Digests) -> dict[str, object]:
    total = sum(item.described(k).nbytes for s in layout.shards for k, item in s.items.items())
    found: dict[str, object] = {**layout.metadata, "total_size": total}
    for name in (ties.KEY, provenance.KEY):
        found.pop(name, None)
    if layout.ties:
        found[ties.KEY] = ties.text(layout.ties)
    if job.recorded:
        found[provenance.KEY] = record(job, digests)
    return found
