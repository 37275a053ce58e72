"""`ckptool lock` as a process: what it writes, checks, and refuses."""

import json

import pytest
import torch
from command_runs import run_and_list_heavy_imports

WITHOUT = "samples.attention:CausalAttentionWithoutBuffers"
WITH = "samples.attention:CausalAttentionWithBuffer"
SIZES = ("-k", "d_in=3", "-k", "d_out=2", "-k", "context_length=6")


def test_lock_then_check_then_change(run_command, tmp_path):
    lock = tmp_path / "ckpt.lock.json"
    ran = run_command("lock", "-m", WITHOUT, *SIZES, "-o", lock)
    assert (ran.code, ran.out.splitlines()[0]) == (0, "locked")
    before = lock.read_bytes()
    ran = run_command("lock", "-m", WITHOUT, *SIZES, "-o", lock)
    assert ran.out.startswith("the lock is up to date")
    ran = run_command("lock", "-m", WITHOUT, *SIZES, "-o", lock, "--check")
    assert (ran.code, ran.out.splitlines()[0]) == (0, "the lock is up to date")
    ran = run_command("lock", "-m", WITH, *SIZES, "-o", lock, "--check", "--format", "json")
    report = json.loads(ran.out)
    assert (ran.code, report["compatibility"]) == (1, "additive")
    assert report["verdict"] == "the lock is out of date: additive, 3 differences"
    assert {(d["key"], d["what"], d["old"], d["new"]) for d in report["differences"]} >= {
        ("mask", "kind", "attribute", "buffer"),
        ("mask", "saved", "no", "yes"),
    }
    assert [f["code"] for f in report["findings"]] == ["CK803"]
    assert lock.read_bytes() == before
    ran = run_command("lock", "-m", WITH, *SIZES, "-o", lock)
    assert (ran.code, ran.out.splitlines()[0]) == (0, "lock updated: additive, 3 differences")
    assert lock.read_bytes() != before
    assert run_command("lock", "-m", WITH, *SIZES, "-o", lock, "--check").code == 0


def test_a_stale_lock_is_a_failure_in_junit(run_command):
    words = ("lock", "-m", WITH, *SIZES, "-o", "samples/model.lock.json", "--check")
    ran = run_command(*words, "--format", "junit")
    assert ran.code == 1
    assert 'failures="1"' in ran.out
    assert "persistence-flipped" in ran.out


def test_the_lock_in_samples_is_fresh(run_command):
    ran = run_command("lock", "-m", WITHOUT, *SIZES, "-o", "samples/model.lock.json", "--check")
    assert (ran.code, ran.out.splitlines()[0]) == (0, "the lock is up to date")


def test_the_same_module_gives_the_same_bytes_in_two_processes(ckptool, tmp_path):
    locks = [tmp_path / "one.json", tmp_path / "other.json"]
    for seed, lock in zip(("1", "2"), locks, strict=True):
        assert ckptool("lock", "-m", WITH, *SIZES, "-o", lock, PYTHONHASHSEED=seed).code == 0
    assert locks[0].read_bytes() == locks[1].read_bytes()


@pytest.mark.process
def test_files_against_a_lock_of_files_need_no_torch(tmp_path, samples):
    lock, config = tmp_path / "model.lock.json", tmp_path / "ckptool.toml"
    config.write_text("")
    path = samples / "training.pth"
    for words in (
        ("lock", path, "-o", lock),
        ("lock", path, "-o", lock, "--check"),
        ("gate", "--no-values", path, "--against", lock, "--policy", config, "--select", "CK8"),
    ):
        assert run_and_list_heavy_imports(*words) == "0 []"
    assert json.loads(lock.read_text())["keys"]["mask"]["kind"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("samples/model.pth", "-m", WITH, *SIZES),
            "a lock needs one source: a module (-m package.module:Name) or a checkpoint",
        ),
        (
            ("samples/model.pth", "-o", "samples/buffer.pth"),
            "already exists and is not a lock: choose another file, or replace it with --force",
        ),
        (
            ("samples/model.pth", "-o", "none.json", "--check"),
            "there is no lock file: create it with `ckptool lock`",
        ),
        (
            ("samples/model.pth", "-o", "no/where.json"),
            "the folder no does not exist: create it first",
        ),
        (("samples/model.pth", "--golden", "g", "--check"), "--golden records"),
        (
            ("samples/buffer.pth", "--golden", "/tmp/g.none"),
            "no input: pass --input or --inputs, or define example_inputs() on the module",
        ),
        (("samples/model.pth", "--device-tolerance", "cpu=x"), "expected a number"),
        (
            ("samples/buffer.pth", "--golden", "/tmp/g.none", "--device-tolerance", "tpu=1"),
            "--device-tolerance tpu=...: expected cpu or cuda",
        ),
    ],
)
def test_one_line_says_what_is_wrong(run_command, words, said):
    ran = run_command("lock", *words)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    assert len(ran.err.splitlines()) == 1


def test_a_damaged_lock_is_named_with_the_place(run_command, tmp_path):
    lock = tmp_path / "ckpt.lock.json"
    run_command("lock", "-m", WITH, *SIZES, "-o", lock)
    lock.write_text(lock.read_text().replace('"dtype": "float32"', '"dtype": 32', 1))
    ran = run_command("lock", "-m", WITH, *SIZES, "-o", lock, "--check")
    assert ran.code == 2
    assert 'Expected `str`, got `int` - at `$.keys["W_key.weight"].dtype`' in ran.err


def test_golden_outputs_are_recorded_and_not_replaced(run_command, tmp_path):
    golden = tmp_path / "golden.safetensors"
    words = (
        "lock", "samples/buffer.pth", "--golden", golden,
        "--inputs", "samples.attention:example_inputs", "--device-tolerance", "cuda=1e-3",
    )  # fmt: skip
    ran = run_command(*words)
    assert (ran.code, ran.out.splitlines()[0]) == (0, "recorded")
    from safetensors import safe_open

    with safe_open(golden, "pt") as file:
        record = json.loads(file.metadata()["ckptool-golden"])
        assert file.get_tensor("output.0").shape == (2, 6, 2)
    assert record["torch"] == str(torch.__version__)
    assert record["tolerances"] == {"cpu": None, "cuda": 1e-3}
    assert record["checkpoint"] == "buffer.pth"
    ran = run_command(*words)
    assert ran.code == 2
    assert "already exists: choose another name, or replace it with --force" in ran.err
    assert run_command(*words, "--force").code == 0
