"""Modules whose parameters are on two ranks: the right answer, or one line that says what to do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

pytestmark = pytest.mark.process
SCRIPT = Path(__file__).with_name("distributed_objects.py")
PART = "this rank has only a part"


def ask_ranks(how, folder):
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, how, folder / "model"],
            env={**os.environ, "PYTHONPATH": str(ROOT), "RANK": str(rank), "WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert not any(process.returncode for process in processes), outputs
    return json.loads(outputs[0][0])


def test_distributed_data_parallel_has_whole_tensors(tmp_path):
    answers = ask_ranks("ddp", tmp_path)
    assert (answers["two"], answers["loaded"]) == ("identical", True)
    assert answers["gathered"] == answers["file"]  # without `module.`, which is in its keys
    assert (answers["equal"], answers["digest"] == answers["file"]) == ("breaking", False)


def test_fully_shard_is_refused_with_what_works(tmp_path):
    answers = ask_ranks("fully_shard", tmp_path)
    for name in ("digest", "equal", "other", "load"):
        assert answers[name].startswith("UsageError: ")
        assert PART in answers[name]
        assert "\n" not in answers[name]
    assert (answers["loaded"], answers["as advised"]) == (False, True)
    assert answers["gathered"] == answers["file"]


def test_fully_sharded_data_parallel_gathers_on_all_ranks(tmp_path):
    answers = ask_ranks("fsdp", tmp_path)
    assert answers["digest"] == answers["gathered"] == answers["file"]
    assert (answers["equal"], answers["other"]) == ("same state, different format", "values differ")
    assert PART in answers["load"]
    assert (answers["loaded"], answers["as advised"]) == (False, True)
