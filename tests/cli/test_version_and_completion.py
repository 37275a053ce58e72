"""Wrong words, the version, and completion: one line each, and no torch."""

import subprocess
import sys
from importlib.metadata import version

import pytest


@pytest.mark.parametrize(
    ("words", "said"),
    [  # of options, click's own words, which differ between its versions
        (["dif"], "ckptool: no such command 'dif': did you mean diff?"),
        (["zzz"], "ckptool: no such command 'zzz': there are inspect, "),
        (["--fo"], "ckptool: no such option"),
        (["diff"], "ckptool diff: missing argument 'PATH'"),
        (["diff", "--no-valuez", "a"], "--no-values"),
        (["inspect", "a", "--format", "jsn"], "ckptool inspect: invalid value for '--format'"),
        (["verify", "a", "--tolerance", "x"], "ckptool verify: invalid value for '--tolerance'"),
    ],
)
def test_a_wrong_word_is_one_line(run_command, words, said):
    ran = run_command(*words)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert said in ran.err
    assert ran.err.rstrip().endswith("--help`)")


def test_no_words_show_the_help(ckptool):
    ran = ckptool()
    assert "Look into checkpoints:" in ran.out + ran.err


@pytest.mark.process
def test_the_version_names_torchs_and_does_not_import_it(ckptool):
    ran = ckptool("--version")
    assert ran.code == 0
    assert f"torch {version('torch')}, Python {sys.version_info[0]}." in ran.out
    script = "import sys; sys.argv = ['ckptool', '--version']\ntry:\n import ckptool.cli as c\n"
    script += " c.main()\nexcept SystemExit:\n print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_its_script(ckptool, shell):
    ran = ckptool(_CKPTOOL_COMPLETE=f"{shell}_source")
    assert ran.code == 0
    assert "_CKPTOOL_COMPLETE" in ran.out


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("ckptool di", {"diff"}),
        ("ckptool inspect --format ", {"table", "json", "markdown"}),
        ("ckptool diff --no-v", {"--no-values"}),
        ("ckptool rule CK10", {f"CK10{n}" for n in range(1, 10)}),
    ],
)
def test_completion(ckptool, typed, expected):
    words = typed.split(" ")
    ran = ckptool(
        _CKPTOOL_COMPLETE="bash_complete", COMP_WORDS=typed, COMP_CWORD=str(len(words) - 1)
    )
    assert expected <= {line.partition(",")[2] for line in ran.out.splitlines()}
