"""`ckptool run --resume-check`: what an interrupted and resumed run has otherwise."""

import os
import shutil
import sys

import pytest
import torch
from tracing.conftest import SCRIPTS, run_traced, run_words

pytestmark = pytest.mark.process

RESUME = ("--resume-check", "--resume-args", "--resume {checkpoint}")

SAVED = '"rng": torch.get_rng_state(), "scheduler": scheduler.state_dict()'
RESTORED = """
    scheduler.load_state_dict(checkpoint["scheduler"])
    torch.set_rng_state(checkpoint["rng"])
"""


RESTORE_ON_RANK_0 = """\
def restore(checkpoint):
    if dist.get_rank() == 0:
        torch.set_rng_state(checkpoint["rng"])


"""
KEEP_END = """\
    torch.save(torch.get_rng_state(), f"end{dist.get_rank()}.pt")
"""


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy2(SCRIPTS / "plain.py", folder / "train.py")
    return folder


def check_script(folder, *changes, options=RESUME):
    script = folder / "train.py"
    text = script.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    script.write_text(text)
    return run_traced((sys.executable, "train.py"), folder, *options)


def test_what_differs_is_named_and_the_attribute_that_is_not_saved(folder):
    run = check_script(folder)
    assert run.code == 1  # a check that cannot fail is none
    assert sorted(run.files) == ["train.py"]  # it ran in copies of the folder
    (difference,) = run.findings("CK334")
    assert "`mean` of __main__.Net" in difference["fix"]
    resume = run.report["resume"]
    assert (resume["checkpoint"], resume["file"], resume["reason"]) == (
        "epoch0.pt",
        "epoch1.pt",
        "",
    )
    assert resume["random"] == []
    names = {finding["key"] for finding in run.findings("CK335")}
    assert "`mean` of __main__.Net" in names
    assert "`steps` of __main__.Net" in names
    # The same, with plain torch: interrupted after the first epoch, and resumed.
    for words in (("whole",), ("resumed", "--epochs", "1"), ("resumed", "--resume", "epoch0.pt")):
        place = folder.parent / words[0]
        place.mkdir(exist_ok=True)
        shutil.copy2(folder / "train.py", place)
        assert run_words((sys.executable, "train.py", *words[1:]), place).code == 0
    whole, resumed = (
        torch.load(folder.parent / name / "epoch1.pt") for name in ("whole", "resumed")
    )
    differing = {
        f"model.{key}" for key, value in whole["model"].items()
        if not torch.equal(value, resumed["model"][key])
    }  # fmt: skip
    assert differing
    assert {name for name in resume["differing"] if name.startswith("model.")} == differing


def test_a_script_that_restores_all_is_the_same(folder):
    run = check_script(
        folder,
        ("self.mean = torch.zeros(4)", 'self.register_buffer("mean", torch.zeros(4))'),
        ("self.steps = 0", 'self.register_buffer("steps", torch.tensor(0))'),
        ('"epoch": epoch}', f'"epoch": epoch, {SAVED}}}'),
        ('first = checkpoint["epoch"] + 1', f'first = checkpoint["epoch"] + 1\n{RESTORED}'),
    )
    assert run.report["resume"]["differing"] == []
    assert (run.code, run.codes) == (0, [])


def test_nondeterminism_is_told_from_loss(folder):
    run = check_script(
        folder, ('"epoch": epoch}', '"epoch": epoch, "time": __import__("time").time()}')
    )
    assert run.report["resume"]["random"] == ["time"]
    (skipped,) = run.report["skipped"]
    assert skipped["what"] == "`time`"
    assert "time" not in run.report["resume"]["differing"]


def test_a_run_with_one_checkpoint_is_not_checked(folder):
    run = check_script(folder, ("default=3", "default=1"))
    assert run.code == 1
    assert "the resumed run was not compared" in run.report["verdict"]
    (skipped,) = run.report["skipped"]
    assert skipped["what"] == "the resumed run"
    assert "nothing is saved after the first checkpoint (epoch0.pt)" in skipped["reason"]


def test_what_is_ignored_does_not_fail_the_check(folder):
    run = check_script(folder, options=(*RESUME, "--ignore", "CK334"))
    assert (run.code, run.findings("CK334")) == (0, [])


def test_random_generators_that_are_not_restored_are_named(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy2(SCRIPTS / "generators.py", folder / "train.py")
    options = ("--resume-check", "--resume-args", "{checkpoint}")
    words = (sys.executable, "train.py")
    run = run_traced(words, folder, *options)
    assert run.code == 1
    names = {
        finding["key"].removeprefix("the state of the random generator ")
        for finding in run.findings("CK335")
    }
    assert names == {"`augment.rng`", "`net.noise`", "`order`"}
    run = run_traced(words, folder, *options, SAVES_GENERATORS="1")
    assert (run.code, run.codes, run.report["resume"]["differing"]) == (0, [], [])


def test_several_ranks_are_interrupted_and_resumed(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    words = (sys.executable, *launch, SCRIPTS / "ddp_resume.py")
    run = run_traced(words, folder, "--resume-check", "--resume-args", "{checkpoint}")
    assert run.code == 1
    resume = run.report["resume"]
    assert (resume["checkpoint"], resume["file"]) == ("epoch0.pt", "epoch1.pt")
    keys = [state["key"] for state in run.findings("CK335")]
    assert all(key.startswith("`module.mean` of ") for key in keys)
    assert [key.endswith(" on rank 1") for key in keys] == [False, True]
    (difference,) = run.findings("CK334")
    assert "`module.mean`" in difference["fix"]
    assert run.report["skipped"] == []


def test_what_only_another_rank_loses_is_named(tmp_path):
    """Rank 0 restores its random state, rank 1 does not; plain runs of the script say the same."""
    script = tmp_path / "train.py"
    text = (SCRIPTS / "ddp_resume.py").read_text()
    for old, new in (
        ("self.mean = 0.5 * self.mean + 0.5 * x.detach().mean(0)", "x = x + torch.randn(4)"),
        ('"epoch": epoch}', '"epoch": epoch, "rng": torch.get_rng_state()}'),
        (
            'first = checkpoint["epoch"] + 1',
            'first = checkpoint["epoch"] + 1\n        restore(checkpoint)',
        ),
        ("def main():", RESTORE_ON_RANK_0 + "def main():"),
        ("    dist.destroy_process_group()", KEEP_END + "    dist.destroy_process_group()"),
    ):
        assert old in text
        text = text.replace(old, new)
    script.write_text(text)
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    words = (sys.executable, *launch, script)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run_words(words, whole)
    run_words((*words, whole / "epoch0.pt"), resumed)
    is_lost = [
        not torch.equal(torch.load(whole / f"end{n}.pt"), torch.load(resumed / f"end{n}.pt"))
        for n in range(2)
    ]
    assert is_lost == [False, True]

    run = run_traced(words, tmp_path / "traced", "--resume-check", "--resume-args", "{checkpoint}")

    keys = [state["key"] for state in run.findings("CK335")]
    assert keys == ["the random state of torch on rank 1"]
    assert run.report["skipped"] == []


def test_a_rank_without_a_step_after_the_save_is_not_checked(tmp_path):
    script = tmp_path / "train.py"
    text = (SCRIPTS / "ddp_resume.py").read_text().replace("range(first, 3)", "range(first, 2)")
    script.write_text(text)
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    words = (sys.executable, *launch, script)
    run = run_traced(words, tmp_path / "traced", "--resume-check", "--resume-args", "{checkpoint}")
    (skipped,) = run.report["skipped"]
    assert (skipped["what"], "no optimizer step" in skipped["reason"]) == ("rank 1", True)


def test_fail_on_is_taken_with_the_check(folder):
    run = check_script(folder, options=(*RESUME, "--fail-on", "warning"))
    assert run.code == 1
    assert {"CK334", "CK335"} <= {finding["code"] for finding in run.report["findings"]}


def test_resume_arguments_that_the_script_refuses(folder):
    run = check_script(folder, options=("--resume-check", "--resume-args", "--from {checkpoint}"))
    (skipped,) = run.report["skipped"]
    assert (
        "ended with exit code 2: train.py: error: unrecognized arguments: --from epoch0.pt"
        in (skipped["reason"])
    )


def test_resume_arguments_without_the_check(folder):
    run = check_script(folder, options=("--resume-args", "--resume {checkpoint}"))
    assert run.code == 2
    assert "--resume-args is for --resume-check" in run.err


def test_a_pipe_in_the_folder_is_not_copied(folder):
    """It ended with the list that shutil raises, and could wait for a writer of the pipe."""
    os.mkfifo(folder / "pipe")
    (folder / "gone").symlink_to(folder / "none")
    run = check_script(folder)
    assert run.findings("CK334"), run
