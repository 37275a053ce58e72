"""Tar checkpoints of torch before 0.1.10, built by hand: no torch writes them today."""

import io
import pickle
import struct
import tarfile

import torch

DATA = torch.arange(1.0, 7.0)
STORAGES = (
    pickle.dumps(1, 2)
    + pickle.dumps((7, "cpu", torch.FloatStorage), 2)
    + struct.pack("<q", 6)
    + DATA.numpy().tobytes()
)


def tensor(key=9, storage=7, size=(2, 3), stride=(3, 1), offset=0) -> bytes:
    numbers = struct.pack(f"<ii{2 * len(size) + 1}q", len(size), 0, *size, *stride, offset)
    return pickle.dumps((key, storage, torch.FloatTensor), 2) + numbers


def object_(id_: object = 9) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return id_ if obj is Ellipsis else None

    out = io.BytesIO()
    Pickler(out, 2).dump({"w": ..., "epoch": 3})
    return out.getvalue()


MEMBERS = {
    "sys_info": pickle.dumps({"protocol_version": 1000}, 2),
    "pickle": object_(),
    "tensors": pickle.dumps(1, 2) + tensor(),
    "storages": STORAGES + pickle.dumps([], 2),
}


def write(path, members=MEMBERS, **how):
    """Write a tar archive; a member that is no bytes is a TarInfo."""
    with tarfile.open(path, "w", **how) as archive:
        for name, data in members.items() if isinstance(members, dict) else members:
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(data, bytes):
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
            else:
                archive.addfile(info)
    return path
