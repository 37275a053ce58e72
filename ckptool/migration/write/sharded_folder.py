"""ShardLayout -> folder of shards: changed shards are written, unchanged ones linked or copied."""

import os
from collections.abc import Iterable
from dataclasses import replace as replace_fields
from pathlib import Path

from msgspec.structs import replace

from ckptool.compare.digest import compute_state_digest
from ckptool.formats.files.atomic import open_pending_output, translate_os_errors
from ckptool.formats.files.output_group import commit_outputs, write_separately
from ckptool.formats.files.writer import FileWriter
from ckptool.formats.safetensors.tie_metadata import TIES_KEY, format_ties
from ckptool.formats.safetensors.writer import write_safetensors
from ckptool.formats.sharded.writer import create_file, link_or_copy_file, write_index
from ckptool.formats.torch.zip_writer import write_torch_zip
from ckptool.migration.plan.container_limits import TORCH
from ckptool.migration.plan.draft import Draft
from ckptool.migration.write import provenance
from ckptool.migration.write.background_fingerprints import Fingerprints
from ckptool.migration.write.file import (
    WriteJob,
    build_header_metadata,
    format_job_provenance,
    order_tensors,
    write_checkpoint,
)
from ckptool.migration.write.provenance import MigrationDigests
from ckptool.migration.write.read_back import read_back_file
from ckptool.migration.write.shard_layout import (
    OutputShard,
    ShardLayout,
    build_shard_draft,
    plan_shards,
)
from ckptool.migration.write.sidecar_files import copy_sidecar_files
from ckptool.migration.write.torch_pickle import build_shard_file
from ckptool.model import StateDict
from ckptool.values.fingerprint_many import fingerprint_many


def write_sharded_folder(job: WriteJob, max_nbytes: int | None) -> MigrationDigests:
    """Write the folder; return the digests of the rewritten shards and of their sources.

    Shards have at most `max_nbytes` bytes; None keeps the layout of a sharded source, and the one
    file of another that a framework looks for.

    Raises:
        WriteError: the folder could not be completed; the target is unchanged.
        ReadError: a source can no longer be read.
    """
    layout = plan_shards(job.draft, max_nbytes, job.to)
    with (
        open_pending_output(job.target, force=job.force, folder=True) as output,
        translate_os_errors(job.target),
    ):
        copy_sidecar_files(job.sidecar_files, output.path)
        if layout.index:
            digests = _write_shards(job, layout, output.path)
            job.check_file(output.path)
        else:
            digests = _write_whole_file(job, layout.shards[0], output.path)
        commit_outputs(output, check=job.check_sources)
    return digests


def _write_shards(job: WriteJob, layout: ShardLayout, folder: Path) -> MigrationDigests:
    digests = _combine_digests(_write_shard(job, layout, s, folder) for s in layout.shards)
    weight_map = {key: shard.name for shard in layout.shards for key in shard.items}
    write_index(folder / layout.index, weight_map, _build_index_metadata(job, layout, digests))
    return digests


def _write_whole_file(job: WriteJob, shard: OutputShard, folder: Path) -> MigrationDigests:
    """Write one file of all weights into the folder, with its checks."""
    draft = replace(job.draft, is_extracted=True)
    torch_file = build_shard_file(build_shard_draft(draft, shard)) if job.to == TORCH else None
    target = folder / shard.name
    whole_job = replace_fields(job, draft=draft, target=target, torch_file=torch_file)
    with write_separately():  # into the temporary folder
        return write_checkpoint(whole_job)


def _write_shard(
    job: WriteJob, layout: ShardLayout, shard: OutputShard, folder: Path
) -> MigrationDigests | None:
    """Write, link or copy one shard into the folder; return digests only if it was written."""
    path = folder / shard.name
    if shard.source_file is not None:
        link_or_copy_file(shard.source_file, path, job.progress, link=job.hard_links)
        return None
    shard_job = replace_fields(
        job, draft=build_shard_draft(job.draft, shard), record_provenance=False
    )
    # The index records the ties of all shards.
    shard_ties = {
        name: kept_key for name, kept_key in layout.ties.items() if kept_key in shard.items
    }
    descriptor = create_file(path)
    try:
        with FileWriter(job.target, descriptor, job.progress) as sink:
            if job.to == TORCH:
                torch_file = build_shard_file(shard_job.draft)
                write_torch_zip(sink, torch_file.pickle, torch_file.storages)
            else:
                write_safetensors(
                    sink,
                    order_tensors(shard.items),
                    build_header_metadata(shard_job, shard_ties, MigrationDigests()),
                )
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    draft = _add_tied_items(shard_job, shard_ties)
    return read_back_file(draft, path, job.target, "", _compute_fingerprints, job.limits)


def _compute_fingerprints(state: StateDict) -> Fingerprints:
    """Return the fingerprints of one shard's tensors by key."""
    return dict(zip(state.tensors, fingerprint_many(state.tensors.values()), strict=True))


def _add_tied_items(job: WriteJob, shard_ties: dict[str, str]) -> Draft:
    restored_items = {name: job.draft.items[kept_key] for name, kept_key in shard_ties.items()}
    return replace(job.draft, items={**job.draft.items, **restored_items})


def _combine_digests(shard_digests: Iterable[MigrationDigests | None]) -> MigrationDigests:
    written_digests = [digests for digests in shard_digests if digests is not None]
    if not written_digests:
        return MigrationDigests("", "")
    return MigrationDigests(
        compute_state_digest(
            {str(index): shard_digest.source for index, shard_digest in enumerate(written_digests)}
        ),
        compute_state_digest(
            {str(index): shard_digest.result for index, shard_digest in enumerate(written_digests)}
        ),
    )


def _build_index_metadata(
    job: WriteJob, layout: ShardLayout, digests: MigrationDigests
) -> dict[str, object]:
    total_nbytes = sum(
        item.describe_tensor(key).nbytes
        for shard in layout.shards
        for key, item in shard.items.items()
    )
    index_metadata: dict[str, object] = {**layout.metadata, "total_size": total_nbytes}
    for name in (TIES_KEY, provenance.PROVENANCE_KEY):
        index_metadata.pop(name, None)
    if layout.ties:
        index_metadata[TIES_KEY] = format_ties(layout.ties)
    if job.record_provenance:
        index_metadata[provenance.PROVENANCE_KEY] = format_job_provenance(job, digests)
    return index_metadata
