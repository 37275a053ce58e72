"""Mutants of harmless files, read by torch and by us: the same tensors, or one of both refuses.

CKPTOOL_DIFFERENTIAL is the number of mutants (3,000 in CI, 600 elsewhere), CKPTOOL_SEED the
number that they start from. torch.load runs with weights_only=True, in a process of its own: a
mutant can end the process that reads it.
"""

import multiprocessing
import os
import struct
import zlib
from collections import Counter
from pathlib import Path
from random import Random

import pytest
import torch
from files import content, same_bits
from hostile.pickles import mapping, pickled, tensor
from hostile.zip_archives import entries, raw_archive
from paths import IS_CI

from ckptool.errors import CkptoolError
from ckptool.formats import open_checkpoint

MUTANTS = int(os.environ.get("CKPTOOL_DIFFERENTIAL", "3000" if IS_CI else "600"))
FIRST = int(os.environ.get("CKPTOOL_SEED", "0"))
NUMBERS = [0, 1, 2, 3, 4, 8, 15, 16, 17, 0x10, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]


def seed_files() -> list[bytes]:
    states = [
        {"w": torch.arange(4.0), "b": torch.arange(6).reshape(2, 3)},
        {"a": {"x": torch.ones(2, dtype=torch.float16)}, "n": 3, "t": [torch.zeros(1)]},
        {"p": torch.nn.Parameter(torch.ones(2, 2)), "view": torch.arange(9.0)[2:5]},
    ]
    found = []
    for state in states:
        for zipped in (True, False):
            path = Path(f"seed-{len(found)}.pth")
            torch.save(state, path, _use_new_zipfile_serialization=zipped)
            found.append(path.read_bytes())
    found.append(raw_archive(entries(pickled(mapping(w=tensor(), v=tensor())))))
    return found


def mutate(random: Random, data: bytes) -> bytes:
    """Return `data` with a few bytes changed, near the structure of a zip more often."""
    changed = bytearray(data)
    marks = [at for magic in (b"PK\1\2", b"PK\5\6", b"PK\3\4") for at in _find(data, magic)]
    pickle_at = data.find(b"\x80\x02")
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        near = random.random()
        if marks and near < 0.5:
            at = random.choice(marks) + random.randrange(4, 48)
        elif near < 0.9:
            at = pickle_at + random.randrange(400)
        else:
            at = random.randrange(len(changed))
        at = min(at, len(changed) - 8)
        if random.random() < 0.5:
            changed[at] ^= 1 << random.randrange(8)
        else:
            width = random.choice((1, 2, 4))
            limit = (1 << 8 * width) - 1
            number = random.choice(NUMBERS) & limit
            changed[at : at + width] = number.to_bytes(width, "little")
    return _repair_checksum(bytes(changed), pickle_at)


def _find(data: bytes, magic: bytes) -> list[int]:
    found, at = [], data.find(magic)
    while at >= 0:
        found.append(at)
        at = data.find(magic, at + 1)
    return found


def _repair_checksum(data: bytes, pickle_at: int) -> bytes:
    """Give data.pkl the checksum of its changed bytes, so that a mutant gets further in."""
    changed = bytearray(data)
    for at in _find(data, b"PK\1\2"):
        if at + 46 > len(data):
            continue
        nbytes, size, key_nbytes = struct.unpack_from("<2L1H", data, at + 20)
        if data[at + 46 : at + 46 + key_nbytes].endswith(b"data.pkl") and nbytes == size:
            crc = zlib.crc32(data[pickle_at : pickle_at + size])
            struct.pack_into("<L", changed, at + 16, crc)
    return bytes(changed)


def describe_leaves(node: object, at: str = "") -> dict[str, torch.Tensor]:
    """Return "place.key" -> tensor, as ckptool names them."""
    if isinstance(node, torch.Tensor):
        return {at: node}
    items = node.items() if isinstance(node, dict) else ()
    items = enumerate(node) if isinstance(node, list | tuple) else items
    return {
        key: leaf
        for name, child in items
        for key, leaf in describe_leaves(child, f"{at}.{name}" if at else f"{name}").items()
    }


def compare(data: bytes, path: Path) -> str:
    """Return "refused by us", "refused by torch" or "same"; AssertionError where both differ."""
    path.write_bytes(data)
    try:
        checkpoint = open_checkpoint(path)
    except CkptoolError:
        return "refused by us"
    if checkpoint.damage:
        return "refused by us"
    try:
        loaded = torch.load(path, weights_only=True)
    except Exception:  # noqa: BLE001 (whatever it raises, it is a refusal)
        return "refused by torch"
    theirs = describe_leaves(loaded)
    ours = {
        f"{state.at}.{key}".strip(".") if state.at and key else state.at or key: described
        for state in checkpoint.states
        for key, described in state.tensors.items()
    }
    for key, described in ours.items():
        if described.layout != "strided" or described.storage.span is None:
            continue
        assert key in theirs, key
        assert same_bits(content(described), theirs[key]), key
        assert described.requires_grad == theirs[key].requires_grad, key
    assert len(ours) == len(theirs)
    return "same"


def run_mutants(folder: str, first: int, count: int, results) -> None:
    """Compare mutants, and put (number, outcome) of each into `results`."""
    os.chdir(folder)
    torch.set_num_threads(1)
    seeds = seed_files()
    for number in range(first, first + count):
        random = Random(number)
        results.send((number, "began"))
        try:
            outcome = compare(mutate(random, random.choice(seeds)), Path("mutant.pth"))
        except AssertionError as error:
            outcome = f"differs: {error}"
        except Exception as error:  # noqa: BLE001
            outcome = f"raised: {error!r}"
        results.send((number, outcome))


@pytest.mark.process
@pytest.mark.filterwarnings("ignore")
def test_what_we_read_is_what_torch_reads(tmp_path):
    outcomes: dict[int, str] = {}
    number = FIRST
    while number < FIRST + MUTANTS:
        receiving, sending = multiprocessing.get_context("spawn").Pipe(duplex=False)
        count = FIRST + MUTANTS - number
        process = multiprocessing.get_context("spawn").Process(
            target=run_mutants, args=(str(tmp_path), number, count, sending)
        )
        process.start()
        sending.close()
        try:
            while True:
                number, outcome = receiving.recv()
                outcomes[number] = outcome
        except EOFError:
            process.join()
        # torch itself may crash on a mutant that we refuse or warn of: the next process goes on.
        number += 1
    wrong = {n: outcome for n, outcome in outcomes.items() if outcome.startswith(("diff", "rais"))}
    assert wrong == {}
    counts = Counter(outcomes.values())
    assert counts["same"] > MUTANTS // 20, counts
    assert counts["refused by us"] > MUTANTS // 20, counts
