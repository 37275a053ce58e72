"""The hooks, run by pre-commit itself from a local clone.

The published hook is `language: python`, for which pre-commit would download torch: of it only the
manifest is validated here. Its entry, its files and its options are those of the `system` hook,
which is really run.
"""

import shutil

import yaml
from paths import ROOT

MANIFEST = ".pre-commit-hooks.yaml"
HOOKS = {hook["id"]: hook for hook in yaml.safe_load((ROOT / MANIFEST).read_text())}


def clone(project):
    """Return a repository that pre-commit can clone, with our manifest as it is now."""
    folder = project.folder.parent / "hooks"
    folder.mkdir()
    shutil.copy(ROOT / MANIFEST, folder)
    for words in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "hooks")):
        project.git("-C", str(folder), *words)
    return folder, project.run("git", "-C", str(folder), "rev-parse", "HEAD").out.strip()


def test_the_manifest_is_valid(project):
    ran = project.run("pre-commit", "validate-manifest", str(ROOT / MANIFEST))
    assert ran.code == 0, ran.out + ran.err


def test_both_hooks_are_the_same_but_for_the_environment():
    alike = ("entry", "args", "files", "require_serial")
    published, system = HOOKS["ckptool-gate"], HOOKS["ckptool-gate-system"]
    assert {k: published[k] for k in alike} == {k: system[k] for k in alike}
    assert (published["language"], system["language"]) == ("python", "system")


def test_pre_commit_fails_the_reference_case_and_passes_after_migrate(project):
    folder, commit = clone(project)
    config = {
        "repos": [{"repo": str(folder), "rev": commit, "hooks": [{"id": "ckptool-gate-system"}]}]
    }
    (project.folder / ".pre-commit-config.yaml").write_text(yaml.safe_dump(config))
    project.git("add", ".")
    old = project.run("pre-commit", "run", "--all-files")
    assert old.code == 1, old.out + old.err
    assert "CK851" in old.out
    project.migrate()
    project.git("add", ".")
    new = project.run("pre-commit", "run")
    assert new.code == 0, new.out + new.err
    assert "Passed" in new.out


def test_a_commit_without_checkpoints_runs_nothing(project):
    folder, commit = clone(project)
    config = {
        "repos": [{"repo": str(folder), "rev": commit, "hooks": [{"id": "ckptool-gate-system"}]}]
    }
    (project.folder / ".pre-commit-config.yaml").write_text(yaml.safe_dump(config))
    project.git("add", ".")
    ran = project.run("pre-commit", "run")
    assert ran.code == 0
    assert "Skipped" in ran.out


def test_a_name_that_begins_with_a_hyphen_is_no_option(project):
    folder, commit = clone(project)
    config = {
        "repos": [{"repo": str(folder), "rev": commit, "hooks": [{"id": "ckptool-gate-system"}]}]
    }
    (project.folder / ".pre-commit-config.yaml").write_text(yaml.safe_dump(config))
    (project.folder / "--exit-zero.pth").write_bytes(
        b"is not a known checkpoint format; it begins with the bytes"
    )
    (project.folder / "-o=pwned.pth").write_bytes(
        b"is not a known checkpoint format; it begins with the bytes"
    )
    project.git("add", "--all", ".")
    ran = project.run("pre-commit", "run", "--all-files")
    assert ran.code == 1
    assert "--exit-zero.pth: " in ran.out
    assert not (project.folder / "=pwned.pth").exists()


def test_changed_model_code_is_held_to_its_locks(project):
    folder, commit = clone(project)
    hooks = [{"id": "ckptool-modules"}, {"id": "ckptool-locks"}]
    config = {"repos": [{"repo": str(folder), "rev": commit, "hooks": hooks}]}
    (project.folder / ".pre-commit-config.yaml").write_text(yaml.safe_dump(config))
    source = "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Linear(2, 2))\n"
    (project.folder / "net_of_hook.py").write_text(source)
    entry = '[[models]]\npath = "w/*"\nmodule = "net_of_hook:build"\nagainst = "n.lock.json"\n'
    (project.folder / "ckptool.toml").write_text(entry)
    assert project.run("ckptool", "lock", "--all").code == 0
    project.git("add", ".")
    good = project.run("pre-commit", "run")
    assert good.code == 0, good.out + good.err
    (project.folder / "net_of_hook.py").write_text(source.replace("(2, 2)", "(2, 3)"))
    project.git("add", ".")
    bad = project.run("pre-commit", "run")
    assert bad.code == 1
    assert "CK804" in bad.out
    assert "1 out of date" in bad.out
