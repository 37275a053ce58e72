"""What is uploaded: built, installed where this repository is not seen, typed and run there.

Only what a wheel is made of is built here, without a network: hatchling is the environment's.
"""

import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from archives import extract_tar
from command_runs import Ran
from paths import ROOT, SAMPLES

pytestmark = pytest.mark.process

USER = """\
from pathlib import Path

import ckptool

checkpoint = ckptool.open_checkpoint(Path("model.pth"))
policy = ckptool.Policy(select=("CK1",), fail_on=ckptool.Level.WARNING)
compared = ckptool.diff("model.pth", module="package.module:Name", policy=policy)
gated = ckptool.gate(["model.pth"], policy=policy, baseline=Path("known.json"))
reveal_type(checkpoint)
reveal_type(policy.fail_on)
reveal_type(compared.verdict)
reveal_type(compared.exit_code)
reveal_type(gated.checkpoints)
reveal_type(gated.findings)
"""

WRONG = {
    'ckptool.diff("model.pth", modul="package.module:Name")': "call-arg",
    "ckptool.gate(1)": "arg-type",
    'ckptool.Policy(select="CK1")': "arg-type",
    'ckptool.diff("model.pth").exit_kode': "union-attr",
    'ckptool.dif("model.pth")': "attr-defined",
}
"""A wrong use -> the error code of mypy that names it."""


@dataclass(frozen=True)
class Built:
    wheel: Path
    sdist: Path
    rebuilt: Path
    """The wheel that the unpacked sdist makes."""
    unpacked: Path


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel and what it depends on, and nothing of the repository."""

    python: Path
    packages: Path
    empty: Path
    run: Callable[..., Ran]


@pytest.fixture(scope="module")
def built(tool, tmp_path_factory) -> Built:
    folder = tmp_path_factory.mktemp("dist")

    def build(source: Path, out: str, *kinds: str) -> None:
        command = ("-m", "build", "--no-isolation", *kinds, "--outdir", folder / out, source)
        ran = tool(sys.executable, *command, cwd=folder)
        assert ran.code == 0, ran.out + ran.err

    build(ROOT, "tree", "--sdist", "--wheel")
    (sdist,) = (folder / "tree").glob("*.tar.gz")
    extract_tar(sdist, folder / "unpacked")
    (unpacked,) = (folder / "unpacked").iterdir()
    build(unpacked, "again", "--wheel")
    (wheel,), (rebuilt,) = ((folder / name).glob("*.whl") for name in ("tree", "again"))
    return Built(wheel, sdist, rebuilt, unpacked)


@pytest.fixture(scope="module")
def installed(tool, built, tmp_path_factory) -> Installed:
    folder = tmp_path_factory.mktemp("installed")
    ran = tool(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    assert ran.code == 0, ran.err
    base = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
    packages = Path(sysconfig.get_path("purelib", "venv", base))
    python = Path(sysconfig.get_path("scripts", "venv", base)) / "python"
    ran = tool(
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
        "--target", packages, built.rebuilt,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    # A folder that is named in a .pth file is searched, but not for .pth files: the editable
    # install of the repository, if there is one, stays out of sight.
    (packages / "dependencies.pth").write_text(
        "\n".join(p for p in sys.path if p.endswith(("site-packages", "dist-packages"))) + "\n"
    )
    empty = folder / "empty"
    empty.mkdir()

    def run(*words: object) -> Ran:
        return tool(python, *words, cwd=empty)

    return Installed(python, packages, empty, run)


def members(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_has_the_package_its_templates_and_its_marker_and_no_more(built):
    names = {name for name in members(built.wheel) if ".dist-info/" not in name}
    tracked = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "ckptool").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == tracked
    assert "ckptool/py.typed" in names


def test_the_sdist_builds_the_same_wheel(built):
    assert members(built.rebuilt) == members(built.wheel)


def test_the_sdist_has_what_its_own_build_and_tests_read(built, tool):
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "PKG-INFO", "constraints.txt"} <= names
    listed = tool("git", "ls-files", "-z")
    if listed.code == 0:
        wanted = {name for name in listed.out.split("\0") if name and (ROOT / name).is_file()}
        assert wanted - names <= {".gitignore"}


def test_pypi_takes_both(built, tool):
    ran = tool(sys.executable, "-m", "twine", "check", "--strict", built.wheel, built.sdist)
    assert ran.code == 0, ran.out + ran.err


def test_it_runs_from_an_empty_folder_with_the_wheel_alone(installed, built):
    where = installed.run("-c", "import ckptool; print(ckptool.__file__)")
    assert Path(where.out.strip()).parent == installed.packages / "ckptool"
    version = installed.run("-m", "ckptool", "--version")
    assert version.out.startswith(f"ckptool {built.wheel.name.split('-')[1]}, "), version.err
    ran = installed.run("-m", "ckptool", "inspect", SAMPLES / "model.pth")
    assert ran.code == 0, ran.err
    assert "W_query.weight" in ran.out
    page = installed.run("-m", "ckptool", "inspect", SAMPLES / "model.pth", "--format", "html")
    assert page.code == 0, page.err
    assert "<html" in page.out
    assert not any(installed.empty.iterdir())


@pytest.fixture(scope="module")
def typed(installed, tool, tmp_path_factory) -> Callable[[str], Ran]:
    """Run mypy --strict as the wheel's user does; of torch it knows no types, to be quick."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "mypy.ini").write_text(
        "[mypy]\nstrict = true\n[mypy-torch.*,numpy.*]\nfollow_imports = skip\n"
    )

    def check(program: str) -> Ran:
        (folder / "program.py").write_text(program)
        return tool("mypy", "--python-executable", installed.python, "program.py", cwd=folder)

    return check


def test_a_strict_user_of_the_wheel_sees_types(typed):
    ran = typed(USER)
    assert ran.code == 0, ran.out + ran.err
    revealed = [line.partition("Revealed type is ")[2] for line in ran.out.splitlines()]
    revealed = [one.strip('"') for one in revealed if one]
    assert len(revealed) == USER.count("reveal_type")
    assert not [one for one in revealed if "Any" in one]
    checkpoint, fail_on, verdict, exit_code, checkpoints, findings = revealed
    assert checkpoint.startswith("ckptool.")
    assert fail_on.endswith("| None")
    assert (verdict, exit_code) == ("str", "int")
    assert checkpoints.startswith("tuple[ckptool.")
    assert findings.startswith("tuple[ckptool.")


def test_a_wrong_use_is_an_error(typed):
    ran = typed("import ckptool\n\n" + "".join(f"{use}\n" for use in WRONG))
    assert ran.code == 1, ran.out + ran.err
    for line, code in enumerate(WRONG.values(), 3):
        found = [one for one in ran.out.splitlines() if one.startswith(f"program.py:{line}: error")]
        assert any(f"[{code}]" in one for one in found), (line, code, ran.out)


def test_without_its_marker_the_wheel_would_have_no_types(typed, installed):
    """The test above looks at the wheel, and not at some other ckptool that mypy found."""
    marker = installed.packages / "ckptool" / "py.typed"
    marker.unlink()
    try:
        ran = typed(USER)
    finally:
        marker.touch()
    assert "[import-untyped]" in ran.out, ran.out
