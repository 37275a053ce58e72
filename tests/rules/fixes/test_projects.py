"""Commands in fixes that repeat the command line: run in a project, as a user would."""

import pytest
import torch
from rules.fixes.fix_runs import take_command, write_net


@pytest.mark.process
def test_options_that_were_given_are_in_the_command(project, ckptool):
    """It left -k out, and -o NEW had no suffix."""
    (project / "kw.json").write_text('{"n": 3}')
    for given in (("-k", "n=3"), ("--kwargs", "kw.json")):
        options = ("a.pth", "-m", "lib_net:Net", *given, "-I", "src", "--at", "model")
        ran = ckptool("diff", *options, cwd=project)
        assert "CK203" in ran.out
        words = take_command(ran.out, "migrate")
        assert {"-I", "src", "n=3"} <= {*words}
        done = ckptool(*words, "--force", cwd=project)
        assert done.code == 0, done.out + done.err
        result = words[words.index("-o") + 1]
        assert result == "a-migrated.pth"
        again = ckptool("diff", result, *options[1:-2], cwd=project)
        assert again.code == 0, again.out


@pytest.mark.process
def test_a_change_is_accepted_in_the_lock(project, ckptool):
    """No finding of a contract said how."""
    options = ("-m", "lib_net:Net", "-k", "n=3", "-I", "src")
    assert ckptool("lock", *options, "-o", "net.lock.json", cwd=project).code == 0
    for line, code in (
        ('self.register_buffer("mask", torch.ones(n), persistent=False)', "CK803"),
        ('self.register_buffer("other", torch.ones(n))', "CK802"),
        ('self.register_buffer("other", torch.ones(n + 1))', "CK804"),
        ("pass", "CK801"),
    ):
        write_net(project, line)
        ran = ckptool("gate", *options, "--against", "net.lock.json", cwd=project)
        assert (ran.code, code in ran.out) == (1, True), ran.out
        fix = next(line for line in ran.out.splitlines() if "ckptool lock" in line)
        assert ckptool(*take_command(fix, "lock"), cwd=project).code == 0
        assert ckptool("gate", *options, "--against", "net.lock.json", cwd=project).code == 0


@pytest.mark.process
def test_an_outdated_baseline_is_updated(project, ckptool):
    torch.save(torch.nn.Linear(1, 1), project / "b.pth")
    words = ("gate", "b.pth", "--baseline", "known.json")
    assert ckptool(*words, "--update-baseline", cwd=project).code == 0
    torch.save(torch.nn.Linear(1, 1).state_dict(), project / "b.pth")
    ran = ckptool(*words, cwd=project)
    assert "CK859" in ran.out
    assert ckptool(*take_command(ran.out, "gate"), cwd=project).code == 0
    assert "CK859" not in ckptool(*words, cwd=project).out
