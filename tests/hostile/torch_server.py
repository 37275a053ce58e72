"""A process that does to files what user code does, each in a child of its own, in a given folder.

A line of JSON in, {"path", "reach", "folder"}; a line of JSON out, {"loads", "ran", "values"}.
`reach` names how the payload is reached: "weights only" and "everything" are torch.load.
"""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import sys
import tarfile
import time
import warnings
import zipfile
import zlib
from pathlib import Path

import torch

MARKER = "HOSTILE_MARKER"
warnings.simplefilter("ignore")


def load(path: str) -> object:
    return torch.load(path, weights_only=True)


def get_bytes(path: str) -> bytes:
    """Return what stands under the key `held`, or under extra state, as bytes."""
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        content = load_file(path)
    else:
        content = torch.load(path, weights_only=False)
    held = content.get("held", content.get("layer._extra_state"))
    return held.numpy().tobytes() if isinstance(held, torch.Tensor) else bytes(held)


def load_array(data: bytes) -> object:
    import numpy as np

    return np.load(io.BytesIO(data), allow_pickle=True)


def load_zip(data: bytes) -> object:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return pickle.loads(archive.read("archive/data.pkl"))


def load_tar(data: bytes) -> object:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return pickle.loads(archive.extractfile("pickle").read())


def load_record(path: str) -> object:
    with zipfile.ZipFile(path) as archive:
        return pickle.loads(archive.read(next(n for n in archive.namelist() if "/extra" in n)))


def load_dcp(path: str) -> object:
    from torch.distributed import checkpoint

    state = {"w": torch.zeros(4), "epoch": {"n": [0]}}
    checkpoint.load(state, checkpoint_id=path)
    return state


def extract(path: str) -> None:
    with zipfile.ZipFile(path) as archive:
        archive.extractall()


REACH = {
    "weights only": load,
    "everything": lambda path: torch.load(path, weights_only=False),
    "unpickle": lambda path: pickle.loads(get_bytes(path)),
    "gzip": lambda path: pickle.loads(gzip.decompress(get_bytes(path))),
    "zlib": lambda path: pickle.loads(zlib.decompress(get_bytes(path))),
    "bz2": lambda path: pickle.loads(bz2.decompress(get_bytes(path))),
    "lzma": lambda path: pickle.loads(lzma.decompress(get_bytes(path))),
    "numpy": lambda path: load_array(get_bytes(path)),
    "zip": lambda path: load_zip(get_bytes(path)),
    "tar": lambda path: load_tar(get_bytes(path)),
    "torch": lambda path: torch.load(io.BytesIO(get_bytes(path)), weights_only=False),
    "record": load_record,
    "dcp": load_dcp,
    "extract": extract,
    "script": torch.jit.load,
}


def run_in_child(path: str, reach: str, folder: str) -> dict:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.chdir(folder)
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        answer = {"loads": False, "values": None}
        try:
            content = REACH[reach](path)
            items = content.items() if isinstance(content, dict) else ()
            answer["loads"] = True
            answer["values"] = {
                str(key): value.tolist() for key, value in items if isinstance(value, torch.Tensor)
            }
        except BaseException as error:  # noqa: BLE001 (whatever it raises, it is a refusal)
            answer["error"] = repr(error)[:300]
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    answer = json.loads(data) if data else {"loads": False, "values": None}
    wait = 50 if answer["loads"] and reach == "everything" else 1  # a process started may be late
    for _ in range(wait):
        answer["ran"] = any(Path(folder).rglob(f"*{MARKER}*"))
        if answer["ran"]:
            break
        time.sleep(0.01)
    return answer


if __name__ == "__main__":
    for line in sys.stdin:
        sys.stdout.write(json.dumps(run_in_child(**json.loads(line))) + "\n")
        sys.stdout.flush()
