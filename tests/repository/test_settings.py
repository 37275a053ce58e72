"""What contributors' tools read: pre-commit, editors, citations; and what SECURITY.md says."""

import re
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml
from editorconfig import get_properties
from paths import ROOT

CONFIG = ROOT / ".pre-commit-config.yaml"
HOOKS = {
    hook["id"]: hook
    for repo in yaml.safe_load(CONFIG.read_text("utf-8"))["repos"]
    for hook in repo["hooks"]
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^):]+)\)")
HURT = {
    "ruff-format": "x = {  'a':1 }\n",
    "ruff-check": '"""Unused."""\n\nimport os\n',
    "mypy": '"""Wrong."""\n\nnumber: int = "text"\n',
}
"""Hook -> a module that it has to stop."""


@pytest.mark.process
def test_pre_commit_takes_the_configuration(tool):
    ran = tool("pre-commit", "validate-config", CONFIG)
    assert ran.code == 0, ran.out + ran.err


def test_hooks_are_steps_of_the_gate_and_fetch_nothing():
    (repo,) = yaml.safe_load(CONFIG.read_text("utf-8"))["repos"]
    assert repo["repo"] == "local"
    gate = (ROOT / ".ci/run").read_text("utf-8")
    assert set(HOOKS) == {"ruff-format", "ruff-check", "mypy", "docs"}
    for hook in HOOKS.values():
        assert hook["language"] == "system"
        step = hook["entry"].removesuffix(" --force-exclude")
        assert re.search(rf"^{re.escape(step)}\b", gate, re.MULTILINE), step


@pytest.fixture
def project(tool, tmp_path):
    """Return what runs pre-commit in a repository with our settings, and a module."""
    folder = tmp_path / "project"
    (folder / "ckptool").mkdir(parents=True)
    for path in (CONFIG, ROOT / "pyproject.toml"):
        shutil.copy(path, folder)

    def run(hook, module):
        (folder / "ckptool" / "__init__.py").write_text(module, encoding="utf-8")
        for words in (("init", "-q"), ("add", ".")):
            assert tool("git", *words, cwd=folder).code == 0
        home = str(tmp_path / "home")
        return tool("pre-commit", "run", hook, "--all-files", cwd=folder, PRE_COMMIT_HOME=home)

    return run


@pytest.mark.process
@pytest.mark.parametrize("hook", HURT)
def test_hooks_stop_what_they_are_for_and_pass_the_rest(project, hook):
    bad = project(hook, HURT[hook])
    assert bad.code == 1, bad.out + bad.err
    assert "Failed" in bad.out
    good = project(hook, '"""Fine."""\n')
    assert good.code == 0, good.out + good.err
    assert "Passed" in good.out


@pytest.mark.process
def test_every_file_is_as_editorconfig_says(tool):
    listed = tool("git", "ls-files", "-z")
    if listed.code:
        pytest.skip("not a git repository: which files are ours is unknown")
    names = [name for name in listed.out.split("\0") if name and (ROOT / name).is_file()]
    assert ".editorconfig" in names
    wrong = {name: found for name in names if (found := faults(ROOT / name))}
    assert not wrong


def faults(path: Path) -> list[str]:
    """Return what of a file is not as its .editorconfig says; nothing is asked of a binary one."""
    data, asked = path.read_bytes(), get_properties(str(path))
    if b"\0" in data:
        return []
    lines = data.decode(asked["charset"]).split("\n")
    return [
        name
        for name, broken in {
            "end_of_line": asked["end_of_line"] == "lf" and b"\r" in data,
            "insert_final_newline": asked["insert_final_newline"] == "true" and lines[-1] != "",
            "trim_trailing_whitespace": asked["trim_trailing_whitespace"] == "true"
            and any(line != line.rstrip() for line in lines),
            "indent_style": asked["indent_style"] == "space"
            and any(line.startswith("\t") for line in lines),
            "indent_size": path.suffix in {".toml", ".yaml", ".yml"}
            and any((len(line) - len(line.lstrip())) % int(asked["indent_size"]) for line in lines),
        }.items()
        if broken
    ]


@pytest.mark.parametrize(
    ("text", "name", "fault"),
    [
        ("x\r\n", "a.py", "end_of_line"),
        ("x", "a.md", "insert_final_newline"),
        ("x \n", "a.py", "trim_trailing_whitespace"),
        ("\tx\n", "a.css", "indent_style"),
        ("a:\n   b: 1\n", "a.yml", "indent_size"),
    ],
)
def test_a_file_that_is_not_as_editorconfig_says_is_named(tmp_path, text, name, fault):
    shutil.copy(ROOT / ".editorconfig", tmp_path)
    (tmp_path / name).write_bytes(text.encode())
    assert fault in faults(tmp_path / name)


@pytest.mark.process
def test_the_citation_fits_its_schema(tool):
    schema = "vendor.citation-file-format"
    ran = tool("check-jsonschema", "--builtin-schema", schema, "CITATION.cff")
    assert ran.code == 0, ran.out + ran.err


def test_the_citation_is_of_this_release():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["title"] == PROJECT["name"]
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["abstract"] == PROJECT["description"]
    assert citation["keywords"] == PROJECT["keywords"]


def test_security_supports_this_release_and_names_what_there_is():
    text = (ROOT / "SECURITY.md").read_text("utf-8")
    series = ".".join(PROJECT["version"].split(".")[:2])
    assert f"| {series}, the newest release | yes |" in text
    linked = [match["target"] for match in LINK.finditer(text)]
    assert "docs/safety.md" in linked
    assert all((ROOT / name).is_file() for name in linked)
