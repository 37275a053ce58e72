"""WriteJob -> file: written to a temporary path, read back, loaded, then renamed to its target."""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ckptool.formats.files.atomic import PendingOutput, open_pending_output, translate_os_errors
from ckptool.formats.files.output_group import commit_outputs
from ckptool.formats.files.writer import FileWriter, ProgressCallback
from ckptool.formats.limits import Limits
from ckptool.formats.safetensors import writer
from ckptool.formats.safetensors.reader import VERSIONS_KEY
from ckptool.formats.safetensors.tie_metadata import TIES_KEY, format_ties
from ckptool.formats.torch import zip_writer
from ckptool.locations import Location
from ckptool.migration.plan.container_limits import SAFETENSORS, TORCH, get_result_place
from ckptool.migration.plan.draft import Draft, PlannedTensor
from ckptool.migration.plan.plan_file import Plan
from ckptool.migration.write import provenance
from ckptool.migration.write.background_fingerprints import Fingerprints
from ckptool.migration.write.early_copy import MIN_EARLY_COPY_NBYTES, EarlyCopy
from ckptool.migration.write.provenance import MigrationDigests, RevisionStamp
from ckptool.migration.write.read_back import read_back_file
from ckptool.migration.write.tensor_bytes import build_blob
from ckptool.migration.write.torch_pickle import TorchFile
from ckptool.model import StateDict

FORMAT_ENTRY = ("format", "pt")
_HEADER_RESERVE: Final = 64 << 10
_ENTRY_NBYTES: Final = 256
"""Header bytes per tensor besides its key; an entry needs half, a plan may lengthen it."""
_KEY_ENCODING: Final = ("utf-8", "surrogatepass")
_PAGE_NBYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class WriteJob:
    """A draft to write, its target, and the checks to pass before the rename."""

    draft: Draft
    plan: Plan
    target: Path
    to: str
    force: bool
    record_provenance: bool
    """Whether the provenance record is written."""
    torch_file: TorchFile | None
    """Pickle and storages of a .pth; None for safetensors and for folders."""
    limits: Limits
    progress: ProgressCallback
    check_sources: Callable[[], None]
    """Raises if a source file has changed."""
    check_file: Callable[[Path], None]
    """Raises if the file at a path fails its checks."""
    get_fingerprints: Callable[[StateDict], Fingerprints]
    """Returns the fingerprints of the source's state_dict by key."""
    early_copy: EarlyCopy
    """Copy that was started before the plan was known."""
    hard_links: bool = True
    """Whether unchanged shards may be hard links to the source's files."""
    stamp: RevisionStamp | None = None
    """Place of the result in a chain of migrations; None without a chain."""
    sidecar_files: Sequence[Location] = ()
    """Files of the source's folder that are copied into the folder of the result."""


def write_checkpoint(job: WriteJob) -> MigrationDigests:
    """Write the result; return the content digests of the source's and the result's state_dict.

    Raises:
        WriteError: the file could not be completed; the target is unchanged.
        ReadError: a source can no longer be read.
    """
    with ExitStack() as stack:
        output = job.early_copy.output or stack.enter_context(
            open_pending_output(job.target, force=job.force)
        )
        with translate_os_errors(job.target):
            return _write_and_check(job, output, stack)


def _write_and_check(job: WriteJob, output: PendingOutput, stack: ExitStack) -> MigrationDigests:
    with FileWriter(job.target, output.descriptor, job.progress) as sink:
        write_content = _write_safetensors if job.to == SAFETENSORS else _write_torch
        finish = write_content(job, sink)
        get_fingerprints = job.get_fingerprints if job.record_provenance else None
        verified_spans = job.early_copy.map_verified_spans()
        with ThreadPoolExecutor(2) as pool:
            # Sync and read-back run while the file is loaded into the module.
            sync_future = pool.submit(output.sync_to_disk)
            read_back_future = pool.submit(
                read_back_file,
                job.draft,
                output.path,
                job.target,
                get_result_place(job.draft, job.to),
                get_fingerprints,
                job.limits,
                verified_spans,
            )
            job.check_file(output.path)
            digests = read_back_future.result()
            sync_future.result()
        finish(digests)
    outputs = [output]
    if job.to == TORCH and job.record_provenance:
        # The record is renamed first: once the result has its name, its record exists.
        outputs.insert(0, _write_record_file(job, digests, stack))
    commit_outputs(*outputs, check=job.check_sources)
    return digests


FinishCallback = Callable[[MigrationDigests], None]


def _write_safetensors(job: WriteJob, sink: FileWriter) -> FinishCallback:
    ordered_tensors = order_tensors(job.draft.untied_items)
    entries = writer.encode_entries(ordered_tensors)
    header_room = compute_header_room(job.draft.state)

    def build_header(digests: MigrationDigests) -> bytes:
        return writer.build_header(
            entries, build_header_metadata(job, job.draft.ties, digests), header_room
        )

    sink.write(build_header(MigrationDigests()))
    kept_count = job.early_copy.keep_matching(
        sink.position, [tensor.blob.span for tensor in ordered_tensors]
    )
    sink.position += sum(tensor.blob.nbytes for tensor in ordered_tensors[:kept_count])
    sink.append_blobs(tensor.blob for tensor in ordered_tensors[kept_count:])
    sink.truncate_at_position()

    def finish(digests: MigrationDigests) -> None:
        if job.record_provenance:
            sink.overwrite_at(0, build_header(digests))

    return finish


def order_tensors(items: Mapping[str, PlannedTensor]) -> list[writer.SafetensorsEntry]:
    """Return the tensors of a safetensors file in file order.

    Within one element size, tensors of the source come first, so that their positions are known
    before the plan is; the order is that of `items`, and so that of the source's state_dict.
    """
    return writer.sort_entries([_build_stored(key, item) for key, item in items.items()])


def _build_stored(key: str, item: PlannedTensor) -> writer.SafetensorsEntry:
    is_source_tensor = bool(item.source_key) and not item.casts
    return writer.SafetensorsEntry(
        key, item.dtype, item.tensor.shape, build_blob(item), not is_source_tensor
    )


def compute_header_room(state: StateDict) -> int:
    """Return the minimum header size in bytes of a large file, so that plans do not move data."""
    if state.nbytes < MIN_EARLY_COPY_NBYTES:
        return 0
    length = _HEADER_RESERVE + sum(
        len(key.encode(*_KEY_ENCODING)) + _ENTRY_NBYTES for key in state.tensors
    )
    return length + -length % _PAGE_NBYTES


def _write_torch(job: WriteJob, sink: FileWriter) -> FinishCallback:
    assert job.torch_file is not None
    zip_writer.write_torch_zip(sink, job.torch_file.pickle, job.torch_file.storages)
    return lambda _: None


def build_header_metadata(
    job: WriteJob, tied_keys: Mapping[str, str], digests: MigrationDigests
) -> dict[str, str]:
    """Return safetensors' `__metadata__`: the source's, versions, ties and provenance."""
    draft = job.draft
    header_metadata = dict([FORMAT_ENTRY])
    if draft.checkpoint.container.value.endswith(SAFETENSORS):
        own_keys = (VERSIONS_KEY, TIES_KEY, provenance.PROVENANCE_KEY)
        header_metadata |= {
            key: value for key, value in draft.checkpoint.metadata.items() if key not in own_keys
        }
    if draft.versions is not None:
        header_metadata[VERSIONS_KEY] = json.dumps(draft.versions)
    if tied_keys:
        header_metadata[TIES_KEY] = format_ties(tied_keys)
    if job.record_provenance:
        header_metadata[provenance.PROVENANCE_KEY] = format_job_provenance(job, digests)
    return header_metadata


def format_job_provenance(job: WriteJob, digests: MigrationDigests) -> str:
    checkpoint = job.draft.checkpoint
    return provenance.format_provenance(
        checkpoint.path.name, checkpoint.container.value, job.plan, digests, job.stamp
    )


def _write_record_file(job: WriteJob, digests: MigrationDigests, stack: ExitStack) -> PendingOutput:
    path = provenance.find_record(job.target)
    output = stack.enter_context(open_pending_output(path, force=True))
    with FileWriter(path, output.descriptor, lambda _: None) as sink:
        sink.write(format_job_provenance(job, digests).encode() + b"\n")
    return output
