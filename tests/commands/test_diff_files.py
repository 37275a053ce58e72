"""`ckptool diff OLD NEW` and `ckptool merge` as processes: parts, errors, progress, Ctrl-C."""

import json
import os
import pty
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from paths import ROOT


@pytest.fixture
def two(tmp_path):
    state = {f"layers.{n}.weight": torch.arange(64.0).view(8, 8) for n in range(6)}
    torch.save(state, tmp_path / "old.pth")
    torch.save({key: tensor.half() for key, tensor in state.items()}, tmp_path / "half.pth")
    state["layers.3.weight"] = state["layers.3.weight"] + torch.eye(8)
    torch.save(state, tmp_path / "new.pth")
    return tmp_path


@pytest.mark.process
@pytest.mark.parametrize(
    ("words", "code", "imported", "text"),
    [
        (
            ["diff", "old.pth", "new.pth"],
            1,
            ["numpy"],
            "layers.3.weight  8          1          0.00968",
        ),
        (["diff", "old.pth", "half.pth"], 1, ["numpy"], "float32 -> float16"),
        (["diff", "old.pth", "old.pth"], 0, [], "identical"),
        (["gate", "old.pth"], 0, ["numpy"], "gate passed"),
        (["gate", "--no-values", "old.pth"], 0, [], "gate passed"),
        (["inspect", "--values", "old.pth"], 0, ["numpy"], "layers.*.weight"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_values_are_measured_without_torch(two, words, code, imported, text):
    script = (
        "import sys, click.testing as t; from ckptool.cli import main; "
        "r = t.CliRunner().invoke(main, sys.argv[1:]); print(r.output); "
        "print(r.exit_code, sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        cwd=two,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert text in done.stdout
    assert done.stdout.splitlines()[-1] == f"{code} {imported}"


def test_tolerance_decides_the_exit_code(run_command, two):
    words = ("diff", "old.pth", "new.pth")
    assert run_command(*words, cwd=two).code == 1
    within = run_command(*words, "--atol", "1", cwd=two)
    assert (within.code, within.out.splitlines()[0]) == (0, "values within tolerance")
    assert "tolerance: 1 + 0 * abs(old)" in within.out
    assert run_command(*words, "--atol", "0.5", cwd=two).code == 1


def test_parts_are_put_together(ckptool, two):
    words = ("diff", "old.pth", "new.pth", "--format", "json")
    for n in (1, 2):
        ran = ckptool(*words, "--shard", f"{n}/2", "-o", f"part-{n}.json", cwd=two)
        assert (ran.code, ran.out, ran.err) == (0, "", "")
    whole = ckptool(*words, cwd=two)
    merged = ckptool("merge", "part-2.json", "part-1.json", "--format", "json", cwd=two)
    assert (merged.code, merged.out) == (1, whole.out)
    assert json.loads(merged.out)["changes"][0]["key"] == "layers.3.weight"
    lonely = ckptool("merge", "part-2.json", cwd=two)
    assert (lonely.code, lonely.out, lonely.err.count("\n")) == (2, "", 1)
    assert "1/2" in lonely.err


def test_a_part_for_people_says_what_it_is(run_command, two):
    ran = run_command("diff", "old.pth", "new.pth", "--shard", "1/2", cwd=two)
    assert ran.out.startswith("part 1 of 2: not judged until all parts are merged\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("new.pth", "--shard", "3/2"), "--shard 3/2: expected I/N with I from 1 to N"),
        (("new.pth", "--shard", "half"), "--shard half: expected I/N, for example 1/4"),
        (("new.pth", "--shard", "1/0"), "--shard 1/0"),
        (("new.pth", "--rtol", "nan"), "--rtol nan: expected a number >= 0"),
        (("new.pth", "--jobs", "0"), "--jobs 0: expected 1 or more"),
        (("--atol", "1"), "--atol compares values of two checkpoints: give both"),
        (("new.pth", "--no-values", "--shard", "1/2"), "--no-values excludes"),
        (("new.pth", "--dask", "nonsense://x"), "no Dask scheduler responds:"),
    ],
)
def test_wrong_options_end_in_one_line(run_command, two, words, said):
    ran = run_command("diff", "old.pth", *words, cwd=two)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.count("\n") == 1
    assert said in ran.err


@pytest.mark.parametrize("words", [("gone.json",), ("old.pth",)])
def test_merge_of_what_is_no_part(run_command, two, words):
    ran = run_command("merge", *words, cwd=two)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert words[0] in ran.err


def hollow(path: Path, nbytes: int) -> Path:
    """Write a safetensors file of zeros that takes no room on the disk."""
    entry = {"dtype": "F32", "shape": [nbytes // 4], "data_offsets": [0, nbytes]}
    header = json.dumps({"w": entry}).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + nbytes)
    return path


@pytest.mark.process
def test_progress_is_shown_on_a_terminal_and_ctrl_c_ends_at_once(tmp_path):
    files = [hollow(tmp_path / f"{name}.safetensors", 200 << 30) for name in "ab"]
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "ckptool", "diff", *map(str, files)],
        stdout=subprocess.PIPE,
        stderr=follower,
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "CI"},
    ) as process:
        os.close(follower)
        text = b""
        while b" left" not in text:
            text += os.read(leader, 4096)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert process.stdout is not None
        assert process.stdout.read() == b""
    text += os.read(leader, 65536)
    os.close(leader)
    assert b"comparing with b.safetensors: " in text
    assert text.endswith(b"\rckptool: ended by SIGINT\r\n")
