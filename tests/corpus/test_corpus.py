"""221 hostile, malformed and tricky-but-valid checkpoints, each through the command.

`manifest.json` says of each how it was made (`how`), which rule it tries, and what it must get:
`accept` is exit 0; `reject` is exit 1 or 2; `flag-unsafe` is exit 1 with the dangerous name in the
output. `also` are outcomes just as good. No payload may run: all that one could do is to make a
folder under MARKERS.
"""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from archives import extract_tar
from click.testing import CliRunner

from ckptool.cli import main

HERE = Path(__file__).parent
MANIFEST = json.loads((HERE / "manifest.json").read_text())
CASES = MANIFEST["cases"]
MARKERS = Path(MANIFEST["marker_root"])
CODES = {"accept": {0}, "reject": {1, 2}, "flag-unsafe": {1}}

GREEDY = [
    "dos_binbytes8",
    "dos_bytearray8",
    "dos_bytearray_reduce",
    "dos_deep_mark",
    "dos_deep_tuple",
    "dos_laughs_list",
    "dos_long_put",
    "dos_text_long",
    "leg_numel_claim_8gib",
    "st_bignum_dim",
    "st_deep_array",
    "st_header_over_100mb",
    "ten_expand_1t",
    "zip_bomb_overlap",
    "zip_bomb_pkl",
]
"""Cases that ask for gigabytes, for deep recursion, or for a long time."""
SPARE = 320 << 20
"""Address space that is enough for Python, ckptool, and 200 MiB."""


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    extract_tar(HERE / "dev.tar.xz", folder)
    return folder


def test_the_archive_holds_what_the_manifest_says(unpacked):
    assert len(CASES) == MANIFEST["count"] == 221
    missing = [c["name"] for c in CASES if not os.path.lexists(unpacked / c["path"])]
    assert missing == []


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_case(case, unpacked):
    before = markers()
    result = CliRunner().invoke(main, ["inspect", str(unpacked / case["path"])])
    assert markers() == before, "the payload ran"
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    text = result.output.encode()
    assert [f for f in case["forbid"] if f.encode("latin-1") in text] == []
    outcomes = [case["expect"], *case["also"]]
    assert result.exit_code in set.union(*(CODES[outcome] for outcome in outcomes)), result.output
    if result.exit_code == 2:
        assert re.fullmatch(r"ckptool: [^\n]+\n", result.stderr)
    if outcomes == ["flag-unsafe"]:
        assert not case["names"] or named(case, text), result.output


@pytest.mark.process
@pytest.mark.parametrize("name", GREEDY)
def test_bounded_memory_and_time(name, unpacked):
    """R8: within 200 MiB and 10 s, in a process of its own that cannot have more."""
    case = next(case for case in CASES if case["name"] == name)
    done = subprocess.run(
        [sys.executable, "-m", "ckptool", "inspect", unpacked / case["path"]],
        capture_output=True,
        timeout=10,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (SPARE, SPARE)),
    )
    assert b"Traceback" not in done.stderr
    assert b"MemoryError" not in done.stderr
    outcomes = (case["expect"], *case["also"])
    assert done.returncode in set.union(*(CODES[outcome] for outcome in outcomes)), done.stderr


def markers() -> set[str]:
    return {path.name for path in MARKERS.iterdir()} if MARKERS.is_dir() else set()


def named(case: dict, text: bytes) -> bool:
    """Whether the output has one of the names, module and attribute near each other."""
    plain = text.replace(case["name"].encode(), b"")
    pairs = [(re.escape(m.encode()), re.escape(n.encode())) for m, n in case["names"]]
    return any(re.search(rb"(?s)%b.{1,60}%b" % pair, plain) for pair in pairs)
