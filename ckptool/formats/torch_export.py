"""An archive of torch.export.save -> Checkpoint: its weights, buffers and constants."""

from ckptool.formats.files import Source
from ckptool.formats.limits import Limits
from ckptool.formats.torch_zip import Records
from ckptool.model import Checkpoint


def claims(_records: Records) -> bool:
    return False


def read_records(source: Source, records: Records, limits: Limits) -> Checkpoint:
    raise NotImplementedError
