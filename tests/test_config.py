from pathlib import Path

import pytest

from ckptool.config import ProjectConfig, load_config
from ckptool.errors import ConfigError

ENTRY = '[[models]]\npath = "runs/*.pth"\nmodule = "m:Net"\nkwargs = { d_in = 3 }\n'


def test_no_configuration_is_the_empty_one(tmp_path):
    assert load_config(tmp_path).settings == ProjectConfig().settings


def test_the_nearest_file_is_taken(tmp_path):
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "ckptool.toml").write_text(ENTRY)
    found = load_config(inner)
    assert found.directory == tmp_path
    entry = found.find_entry(tmp_path / "runs" / "x.pth")
    assert entry is not None
    assert (entry.module, entry.kwargs) == ("m:Net", {"d_in": 3})
    assert found.find_entry(tmp_path / "other" / "x.pth") is None
    assert found.find_entry(Path("/somewhere/else.pth")) is None


def test_pyproject_counts_only_with_a_section(tmp_path):
    inner = tmp_path / "a"
    inner.mkdir()
    (inner / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    (tmp_path / "pyproject.toml").write_text("[tool.ckptool]\nfail-on = 'note'\n")
    assert load_config(inner).settings.fail_on == "note"


def test_a_configuration_beside_the_checkpoint_is_not_read(tmp_path, monkeypatch):
    """A downloaded folder must not choose the code that is run."""
    download = tmp_path / "download"
    download.mkdir()
    (download / "ckptool.toml").write_text('[[models]]\npath = "*"\nmodule = "evil:Net"\n')
    assert load_config(tmp_path).find_entry(download / "model.pth") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[models]]\npath = 'x'\nmodul = 'm:N'\n", "unknown key `modul`.*did you mean `module`"),
        ("failon = 'note'\n", "unknown key `failon`; did you mean `fail-on`"),
        (
            "fail-on = 'sometimes'\n",
            "fail-on: 'sometimes' is not one of note, warning, error, never",
        ),
        (
            "[[models]]\npath = 3\nmodule = 'm:N'\n",
            r"\[\[models\]\] number 1: path: expected text in quotes, and it is an integer",
        ),
        ("[[models]]\npath = 'x'\n", r"\[\[models\]\] number 1: `module` is missing"),
        ("models = [", "is not valid TOML"),
    ],
)
def test_faults_name_the_file_and_the_place(tmp_path, text, said):
    (tmp_path / "ckptool.toml").write_text(text)
    with pytest.raises(ConfigError, match=said) as error:
        load_config(tmp_path)
    assert str(tmp_path / "ckptool.toml") in str(error.value)
