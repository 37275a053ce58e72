"""The command as its users meet it: real processes, real files, exit codes, one-line faults."""

import json
import os
import pty
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from command_runs import LINEAR, run_and_list_heavy_imports
from files import save
from paths import ROOT
from torch import nn

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 3\n"


def test_the_readmes_first_command(ckptool):
    ran = ckptool("diff", "samples/model.pth")
    assert ran.code == 1
    assert ran.out.startswith("loads, but `mask` is not in the state_dict and will not be saved\n")
    assert ran.err == ""


@pytest.mark.parametrize("command", ["audit", "diff", "fix", "gate", "inspect", "lock", "verify"])
@pytest.mark.parametrize(
    ("word", "option"),
    [
        ("net.py:Net", "-m net.py:Net"),
        ("pkg.net:Net", "-m pkg.net:Net"),
        ("net.py:make(3)", "-m 'net.py:make(3)'"),
        ("missing.py", "-m missing.py:NAME"),
    ],
)
def test_a_module_in_the_place_of_a_file_is_answered_with_its_option(
    run_command, command, word, option
):
    ran = run_command(command, word)
    assert ran.code == 2
    assert f"a module is given with {option}" in ran.err


@pytest.mark.parametrize("word", ["a:b:c", "1.5:2", "missing.pth", "s3:bucket/x.pth"])
def test_a_file_that_is_missing_is_not_taken_for_a_module(run_command, word):
    assert "a module is given" not in run_command("inspect", word).err


def test_a_clean_diff_exits_0(run_command, linear):
    ran = run_command("diff", linear, *LINEAR)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("loads strictly\n")


def test_inspect_needs_no_terminal_and_prints_aligned_columns(ckptool, linear):
    ran = ckptool("inspect", linear)
    assert ran.code == 0
    assert re.search(r"^weight +float32 +\[3, 2\] +24 B +\S+$", ran.out, re.MULTILINE)
    assert "\x1b" not in ran.out


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("missing.pth", lambda p: None, "no such file"),
        ("folder", lambda p: p.mkdir(), ""),
        ("empty.pth", lambda p: p.write_bytes(b""), "empty"),
        ("lfs.pth", lambda p: p.write_text(LFS), "git-lfs"),
        ("page.pth", lambda p: p.write_text("<!DOCTYPE html><html></html>"), "HTML"),
        ("noise.pth", lambda p: p.write_bytes(bytes(range(7, 256)) * 9), ""),
        ("plain.pth", lambda p: save(p, {"epoch": 3}), "no tensors"),
        (
            "header.safetensors",
            lambda p: p.write_bytes(b"\x10" + b"\0" * 7 + b'{"a": 1, "b": 2}'),
            "",
        ),
        ("half.pth", lambda p: cut(save(p, nn.Linear(50, 50).state_dict())), ""),
    ],
)
@pytest.mark.parametrize("command", ["inspect", "diff"])
def test_what_cannot_be_read_ends_in_one_line_and_exit_2(
    run_command, tmp_path, command, name, make, said
):
    path = tmp_path / name
    make(path)
    ran = run_command(command, path, *(LINEAR if command == "diff" else ()))
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.count("\n") == 1
    assert str(path) in ran.err
    assert said.lower() in ran.err.lower()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_zip_that_is_no_checkpoint(ckptool, tmp_path):
    path = tmp_path / "z.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    ran = ckptool("inspect", path)
    assert ran.code == 2
    assert "data.pkl" in ran.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-m", "nowhere.at_all:Net"), "nowhere"),
        (("-m", "torch.nn:Linea"), "Linear"),
        (("-m", "torch:pi"), "module"),
        (("-m", "torch.nn"), "package.module:Name"),
        (("-m", "torch.nn:Linear"), "-k"),
        (("-m", "torch.nn:Linear", "-k", "in_features=2", "-k", "out_features='x'"), "Linear"),
        (("-m", "torch.nn:Linear", "-k", "in_features"), "name=value"),
        (("-m", "torch.nn:Linear", "-k", "mode=fast"), "quotes"),
        (("-m", "torch.nn:Linear", "--kwargs", "nowhere.json"), "nowhere.json"),
        ((), "three"),
        (("--select", "CK999"), "there is no rule"),
        (("--fail-on", "sometimes"), "--fail-on"),
        (("--no-such-option",), "--no-such-option"),
        (("--limit", "opcode=3"), "unknown limit; the limits are"),
        (("--limit", "opcodes=many"), "opcodes=NUMBER"),
        (("--limit", "opcodes=3"), "linear.pth"),
        ((*LINEAR, "--explain", "weigth"), "did you mean 'weight'"),
    ],
)
def test_wrong_options_say_the_way_out(run_command, linear, words, said):
    ran = run_command("diff", linear, *words)
    assert ran.code == 2
    assert ran.out == ""
    wanted = "-m package.module:Name" if said == "three" else said
    assert wanted in ran.err
    assert "Traceback" not in ran.err


def test_a_constructors_own_message_is_shown(run_command, linear, tmp_path):
    (tmp_path / "stern.py").write_text(
        "def build():\n    raise ValueError('heads must divide width')\n"
    )
    ran = run_command("diff", linear, "-m", "stern:build", cwd=tmp_path)
    assert ran.code == 2
    assert "ValueError: heads must divide width" in ran.err
    assert ran.err.count("\n") == 1


def test_verbose_shows_the_traceback(ckptool, tmp_path):
    ran = ckptool("diff", tmp_path / "missing.pth", "-v", *LINEAR)
    assert ran.code == 2
    assert "Traceback" in ran.err
    assert ran.err.splitlines()[-1].startswith("ckptool: ")


@pytest.mark.process
def test_a_full_disk_behind_standard_output_is_an_error(linear):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "ckptool", "inspect", str(linear)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "No space left on device" in done.stderr


def test_one_bad_file_does_not_hide_the_others(run_command, linear, tmp_path):
    ran = run_command("inspect", tmp_path / "missing.pth", linear)
    assert ran.code == 2
    assert "linear.pth: torch-zip" in ran.out
    assert "missing.pth: no such file" in ran.err


@pytest.mark.process
def test_a_dash_reads_standard_input(linear):
    with linear.open("rb") as stream:
        done = subprocess.run(
            [sys.executable, "-m", "ckptool", "inspect", "-"],
            stdin=stream,
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("<stdin>: torch-zip")


def test_json_goes_to_a_file_and_nothing_to_standard_output(run_command, linear, tmp_path):
    ran = run_command("diff", linear, *LINEAR, "--format", "json", "-o", tmp_path / "r.json")
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["matched"] == ["weight", "bias"]


def test_a_report_that_cannot_be_written_is_an_error(run_command, linear, tmp_path):
    ran = run_command("inspect", linear, "-o", tmp_path / "no" / "such" / "folder.json")
    assert ran.code == 2
    assert "folder.json" in ran.err


def test_quiet_prints_the_verdict_only(run_command):
    assert (
        run_command("diff", "samples/model.pth", "-q").out
        == "loads, but `mask` is not in the state_dict and will not be saved\n"
    )


@pytest.mark.parametrize(("level", "code"), [("never", 0), ("error", 1), ("note", 1)])
def test_fail_on(run_command, level, code):
    assert run_command("diff", "samples/model.pth", "--fail-on", level).code == code


def test_ignored_findings_do_not_fail(run_command):
    ran = run_command("diff", "samples/model.pth", "--ignore", "CK1")
    assert ran.code == 0
    assert "CK110" not in ran.out


def test_a_difference_exits_1_and_none_exits_0(run_command, linear, tmp_path):
    other = save(tmp_path / "other.pth", nn.Linear(2, 3).state_dict())
    same = run_command("diff", linear, linear)
    assert (same.code, same.out.splitlines()[0]) == (0, "identical")
    differs = run_command("diff", linear, other)
    assert (differs.code, differs.out.splitlines()[0]) == (1, "values differ: `weight`, `bias`")
    unseen = run_command("diff", linear, other, "--no-values")
    assert (unseen.code, unseen.out.splitlines()[0]) == (0, "compatible")
    assert "not checked: values" in unseen.out


def test_files_that_load_alike_and_differ_say_so_and_exit_1(run_command, tmp_path):
    state = nn.Linear(2, 3).state_dict()
    old = save(tmp_path / "old.pth", state)
    new = save(tmp_path / "new.pth", {key: tensor.half() for key, tensor in state.items()})
    nn.Linear(2, 3).load_state_dict(torch.load(new))  # the dtype does not matter to torch
    differs = run_command("diff", old, new)
    verdict = "compatible, but not equal: 2 keys changed"
    assert (differs.code, differs.out.splitlines()[0]) == (1, verdict)
    assert run_command("diff", old, new, "--fail-on", "never").code == 0


def test_help_of_diff_says_what_its_exit_codes_mean(run_command):
    text = " ".join(run_command("diff", "--help").out.split())
    assert "Exit codes: 0 the module loads" in text
    assert "1 it does not, they differ" in text
    assert "2 could not check" in text


def test_explain_tells_all_about_one_key(run_command):
    ran = run_command("diff", "samples/model.pth", "--explain", "mask")
    assert "attribute of samples.attention.CausalAttentionWithoutBuffers" in ran.out
    assert "follows .to(device)" in ran.out


def test_rule_explains_itself_and_an_unknown_one_is_an_error(ckptool):
    assert "register_buffer" in ckptool("rule", "CK101").out
    assert ckptool("rule", "ck2").out.count("\n") > 10
    assert ckptool("rule", "CK777").code == 2


def on_terminal(*words: str, columns: int = 80, **environment: str) -> str:
    """Return what the command prints on a terminal of its own."""
    leader, follower = pty.openpty()
    settings = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm", **environment}
    with subprocess.Popen(
        [sys.executable, "-m", "ckptool", *words],
        stdout=follower,
        stderr=follower,
        env=settings,
        cwd=ROOT,
    ) as process:
        os.close(follower)
        text = b""
        while True:
            try:
                piece = os.read(leader, 65536)
            except OSError:
                break
            if not piece:
                break
            text += piece
        process.wait()
    os.close(leader)
    return text.decode()


@pytest.mark.process
def test_colour_is_for_terminals_and_can_be_turned_off():
    words = ("inspect", "samples/model.pth")
    assert "\x1b[" in on_terminal(*words)
    assert "\x1b[" not in on_terminal(*words, NO_COLOR="1")
    assert "\x1b[" not in on_terminal(*words, TERM="dumb")
    assert "\x1b[" not in on_terminal(*words, "--color", "never")


def test_colour_can_be_forced(ckptool):
    assert "\x1b[" in ckptool("inspect", "samples/model.pth", "--color", "always").out
    assert "\x1b[" in ckptool("inspect", "samples/model.pth", FORCE_COLOR="1").out


@pytest.mark.process
def test_nothing_is_wider_than_a_narrow_terminal(tmp_path):
    wide = "transformer.encoder.layers.attention.self.projection.query_key_value.weight"
    path = save(tmp_path / "wide.pth", {wide: torch.ones(3, 3), "b": torch.ones(2)})
    lines = on_terminal("inspect", str(path), columns=60, NO_COLOR="1").splitlines()
    table = lines[lines.index(next(line for line in lines if line.startswith("---"))) :]
    assert max(map(len, table)) <= 60
    assert any("..." in line for line in table)


@pytest.mark.process
def test_a_closed_pipe_is_no_traceback():
    command = f"{sys.executable} -m ckptool rule | head -1"
    done = subprocess.run(
        command,
        shell=True,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.stdout.startswith("CK101")
    assert done.stderr == ""


def test_hostile_names_reach_no_terminal(run_command, tmp_path):
    path = save(tmp_path / "m.pth", {"evil\x1b[2J\nkey": torch.ones(2), "w\u202e": torch.ones(2)})
    for form in ("table", "json", "markdown"):
        out = run_command("inspect", path, "--format", form).out
        assert "\x1b" not in out
        assert "\u202e" not in out


@pytest.mark.process
def test_the_commands_import_what_builds_modules_only_when_one_is_looked_at(tmp_path, linear):
    for words in (
        ["inspect", linear],
        ["diff", linear, linear],
        ["digest", linear],
        ["--help"],
        ["rule", "CK101"],
    ):
        assert run_and_list_heavy_imports(*words) == "0 []"
