"""Words of the user: passwords in them are never repeated, and no name of a file is a traceback.

Commands, arguments and options are read from click's command tree.
"""

import os
import shutil
import signal
import subprocess
import sys
import time

import click
import pytest
import torch
from command_runs import run_process
from files import save
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT

from ckptool.cli import COMMANDS, REVISION_COMMANDS, main
from ckptool.cli.outputs.secrets import find_secrets, mask_secrets

CONTEXT = click.Context(main)
URL = "https://user:hunter2secret@127.0.0.1:1/model.pth?X-Signature=SIGNATURE123&b=2"
SECRETS = ("hunter2", "SIGNATURE123")
BASE = {
    "audit": ("-m", "torch.nn:ReLU"),
    "check": ("-m", "torch.nn:ReLU"),
    "convert": ("{}", "--dry-run"),
    "current": ("{}",),
    "diff": ("{}", "--no-values"),
    "digest": ("{}",),
    "downgrade": ("{}", "--dry-run", "--to", "base"),
    "explain": ("{}",),
    "fix": ("-m", "torch.nn:ReLU", "--in-process"),
    "gate": ("{}", "--no-values"),
    "history": (),
    "init": ("--dry-run",),
    "inspect": ("{}",),
    "lock": ("{}",),
    "merge": (),
    "migrate": ("{}", "--dry-run"),
    "revision": ("-m", "first", "--module", "torch.nn:ReLU", "--dry-run", "--in-process"),
    "rule": (),
    "run": (),
    "upgrade": ("{}", "--dry-run"),
    "verify": ("{}", "-m", "torch.nn:ReLU", "--device", "cpu"),
}
WORDS = [
    (name, parameter.opts[0] if parameter.param_type_name == "option" else "")
    for name in COMMANDS
    for parameter in main.get_command(CONTEXT, name).params
    if not getattr(parameter, "is_flag", False) and not getattr(parameter, "count", False)
]


def make_words(name: str, option: str, value: str, path: object) -> list[str]:
    base = [word.format(path) for word in BASE[name]]
    if option:
        return [name, *base, option, value]
    return [name, *(word for word in base if word != str(path)), value]


@pytest.mark.parametrize(("name", "option"), WORDS)
def test_a_password_is_never_repeated(name, option, run_command, tmp_path) -> None:
    for number, template in enumerate(("{}", "x={}", "file:{}#key", "w=file:{}#key")):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = save(folder / "a.pth", {"w": torch.ones(2)})
        words = make_words(name, option, template.format(URL), path)
        for more in ((), ("--format", "json"), ("-v",)):
            if name == "rule" and more:
                continue
            ran = run_command(*words, *more, cwd=folder)
            assert not any(secret in ran.out + ran.err for secret in SECRETS), ran


def test_a_password_in_the_place_of_a_command_is_never_repeated(run_command) -> None:
    """`ckptool URL`, without a command: "no such command" repeated all of it."""
    ran = run_command(URL)
    assert (ran.code, "no such command" in ran.err) == (2, True)
    assert not any(secret in ran.out + ran.err for secret in SECRETS), ran


def test_a_password_of_the_configuration_is_never_repeated(run_command, tmp_path) -> None:
    path = save(tmp_path / "a.pth", {"w": torch.ones(2)})
    (tmp_path / "ckptool.toml").write_text(
        f'[[models]]\npath = "*.pth"\nmodule = "torch.nn:ReLU"\ngolden = ["{URL}"]\n'
        f'against = "{URL}"\n'
    )
    ran = run_command("gate", path, "--format", "json", cwd=tmp_path)
    assert not any(secret in ran.out + ran.err for secret in SECRETS), ran


@given(st.text("ab/:@?=&# x"))
def test_masking_removes_every_secret(word: str) -> None:
    secrets = find_secrets([f"https://{word}"])
    masked = mask_secrets(f"the word https:/{word} was wrong", secrets)
    assert not any(secret in masked for secret in secrets if secret not in "the word was wrong")


def test_a_revision_of_the_hub_is_no_password() -> None:
    assert find_secrets(["hf://org/repo@main/model.safetensors"]) == frozenset()
    assert find_secrets(["s3://bucket/a.pth", "a.pth", "x=3"]) == frozenset()


def make_bad_names(folder) -> dict[str, str]:
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "file").write_text("x")
    return {
        "too long": "n" * 300,
        "too long a path": "/".join(["d" * 200] * 30),
        "loop": str(folder / "loop"),
        "below a file": str(folder / "file" / "x"),
        "missing folder": str(folder / "no" / "x"),
        "wildcard": "*" * 300,
        "newline": "a\nb",
        "begins like an option": "./-o",
    }


@pytest.mark.parametrize(("name", "option"), WORDS)
def test_no_name_is_a_traceback(name, option, run_command, tmp_path) -> None:
    path = save(tmp_path / "a.pth", {"w": torch.ones(2)})
    for bad_name in make_bad_names(tmp_path).values():
        ran = run_command(*make_words(name, option, bad_name, path), cwd=tmp_path)
        assert "Traceback (most recent call last)" not in ran.err, (bad_name, ran.err)
        assert ran.code in {0, 1, 2}
        is_text = name == "explain" and ran.out.startswith("no known error")
        assert ran.code != 2 or is_text or ran.err.startswith("ckptool"), ran


@pytest.mark.process
@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"), reason="root, without its capabilities"
)
@pytest.mark.parametrize(
    "name", sorted(COMMANDS.keys() - {"rule", "audit", "fix", "run"} - REVISION_COMMANDS)
)
def test_a_folder_that_may_not_be_searched_is_a_line(name, tmp_path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    path = save(locked / "a.pth", {"w": torch.ones(2)})
    locked.chmod(0o000)
    words = make_words(name, "", str(path), path)
    words += ["-o", str(locked / "out.pth")] if name in {"lock", "migrate"} else []
    done = subprocess.run(
        ["setpriv", "--inh-caps=-all", "--bounding-set=-dac_override,-dac_read_search",
         sys.executable, "-m", "ckptool", *words],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    locked.chmod(0o700)
    assert done.returncode == 2, done
    assert "Permission denied" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.process
@pytest.mark.parametrize("delay", [0.03, 0.05, 0.08, 0.12, 0.2, 0.3])
def test_an_early_interrupt_is_no_traceback_of_ours(delay, tmp_path) -> None:
    path = save(tmp_path / "a.pth", {"w": torch.ones(2)})
    process = subprocess.Popen(
        [sys.executable, "-m", "ckptool", "gate", str(path), "-m", "torch.nn:ReLU"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in {130, -signal.SIGINT, 1, 2}
    # Before Python has read its own start files nothing of ours runs; C code of numpy prints the
    # exception that an import is interrupted with, which the handler raises.
    lines = [line for line in errors.splitlines() if "files/signals.py" not in line]
    assert "Traceback" not in errors or "ckptool/" not in "".join(lines), errors


@pytest.mark.process
@pytest.mark.parametrize(
    "words",
    [
        ("inspect", "a.pth", "--format", "json", "-o", "out"),
        ("lock", "a.pth", "-o", "out"),
        ("migrate", "a.pth", "-o", "out.safetensors"),
        ("migrate", "a.pth", "-o", "out.pth"),
    ],
)
def test_a_limit_on_the_size_of_files_leaves_nothing_behind(words, tmp_path) -> None:
    state = {f"w{i}": torch.ones(100) for i in range(50)}
    save(tmp_path / "a.pth", state)
    before = sorted(tmp_path.iterdir())
    command = f'ulimit -f 1; exec {sys.executable} -B -m ckptool "$@"'
    done = subprocess.run(
        ["bash", "-c", command, "bash", *words], cwd=tmp_path, capture_output=True, text=True,
        check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.process
def test_a_full_report_to_a_limited_file_is_a_line(tmp_path) -> None:
    save(tmp_path / "a.pth", {f"w{i}": torch.ones(1) for i in range(200)})
    ran = run_process("inspect", tmp_path / "a.pth", "--format", "json", "-o", "/dev/full")
    assert ran.code == 2
    assert "No space left on device" in ran.err
