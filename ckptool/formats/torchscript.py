"""A TorchScript archive -> Checkpoint: its module's parameters, buffers and attributes."""

from ckptool.formats.files import Source
from ckptool.formats.limits import Limits
from ckptool.formats.torch_zip import Records, describe_records
from ckptool.model import Checkpoint, Container


def read_records(source: Source, records: Records, limits: Limits) -> Checkpoint:
    return describe_records(source, records, limits, Container.TORCHSCRIPT)
