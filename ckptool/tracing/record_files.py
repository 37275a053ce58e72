"""TraceRecords <-> files: one file a process, one line a record, appended at once."""

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from ckptool.tracing.records import AnyRecord, UncheckedRecord

MAX_RECORDS = 2000
"""Maximum records of one process; more are counted by the last one."""


class RecordWriter:
    """Sink of the records of this process, and of each that is forked from it.

    A line is written by one call on a file opened for appending: a killed process leaves whole
    lines but for the last.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._counts: dict[int, int] = {}

    def write_record(self, record: AnyRecord) -> None:
        """Append a record to the file of this process; the first beyond MAX_RECORDS says so."""
        process = os.getpid()
        count = self._counts[process] = self._counts.get(process, 0) + 1
        if count > MAX_RECORDS + 1:
            return
        if count == MAX_RECORDS + 1:
            reason = f"only the first {MAX_RECORDS:,} of one process are recorded"
            record = UncheckedRecord(what="further loads and saves", reason=reason)
        line = msgspec.json.encode(record) + b"\n"
        path = os.path.join(self._folder, f"{process}.jsonl")  # noqa: PTH118
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)


def read_records(folder: Path) -> Iterator[AnyRecord]:
    """Yield the records of all processes, each process's in its order; a broken line is said."""
    decoder = msgspec.json.Decoder(AnyRecord)
    for path in sorted(folder.glob("*.jsonl"), key=lambda file: file.stat().st_mtime_ns):
        for line in path.read_bytes().splitlines():
            try:
                yield decoder.decode(line)
            except msgspec.DecodeError as error:
                yield UncheckedRecord(what="a load or save", reason=f"its record: {error}")
