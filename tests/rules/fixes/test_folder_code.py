"""Code and commands in fixes about files next to each other: index, shards, configuration."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from rules.cases_files import INDEX, ONE, TWO, all_shards_are_there
from rules.fixes.fix_runs import find_own, list_cases
from safetensors.torch import load_file

from ckptool import api


@pytest.mark.parametrize("case", list_cases("CK602"), ids=lambda case: case.name)
def test_an_index_is_written_again_from_its_shards(case, tmp_path):
    finding = find_own(case, case.make(tmp_path))
    exec(finding.fix.partition("write their index again: ")[2], {})
    assert not api.inspect(tmp_path).findings
    weight_map = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    assert weight_map == {key: name for name in (ONE, TWO) for key in load_file(tmp_path / name)}


def test_an_index_of_pickled_shards_is_written_again(tmp_path):
    shard, index = tmp_path / "pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"
    torch.save({"a": torch.ones(1)}, shard)
    content = {"metadata": {"total_size": 4}, "weight_map": dict.fromkeys("ab", shard.name)}
    (tmp_path / index).write_text(json.dumps(content))
    for path in (tmp_path, tmp_path / index):
        (finding,) = (f for f in api.inspect(path).findings if f.code == "CK602")
    exec(finding.fix.partition("write their index again: ")[2], {})
    assert json.loads((tmp_path / index).read_text()) == content | {"weight_map": {"a": shard.name}}
    assert "CK602" not in {f.code for f in api.inspect(tmp_path).findings}


@pytest.mark.parametrize("case", list_cases("CK306"), ids=lambda case: case.name)
def test_a_damaged_file_is_downloaded_over_itself(case, tmp_path):
    hub = pytest.importorskip("huggingface_hub.cli.hf")
    report = case.make(tmp_path)
    words = shlex.split(re.search("hf download .*", find_own(case, report).fix)[0])
    name = Path(report.checkpoints[0].path).name
    options = ["--local-dir", str(tmp_path), "--force-download"]
    assert words == ["hf", "download", "REPOSITORY", name, *options]
    shown = CliRunner().invoke(hub.app, ["download", "--help"], terminal_width=200)
    assert "--force-download" in shown.output


@pytest.mark.parametrize("case", list_cases("CK601"), ids=lambda case: case.name)
def test_a_missing_shard_is_downloaded_into_its_folder(case, tmp_path):
    """huggingface_hub has the command; a copy takes the place of the download."""
    hub = pytest.importorskip("huggingface_hub.cli.hf")
    finding = find_own(case, case.make(tmp_path))
    words = shlex.split(re.search("hf download .*", finding.fix)[0])
    assert words == ["hf", "download", "REPOSITORY", TWO, "--local-dir", str(tmp_path)]
    shown = CliRunner().invoke(hub.app, ["download", "--help"], terminal_width=200)
    assert re.search(r"REPO_ID +\[FILENAMES\]", shown.output)
    assert "--local-dir" in shown.output
    released = tmp_path / "released"
    released.mkdir()
    all_shards_are_there(released)
    (tmp_path / TWO).write_bytes((released / TWO).read_bytes())
    assert "CK601" not in {f.code for f in api.inspect(tmp_path / INDEX).findings}


@pytest.mark.parametrize("case", list_cases("CK236"), ids=lambda case: case.name)
def test_a_configuration_is_corrected(case, tmp_path):
    finding = find_own(case, case.make(tmp_path))
    code = finding.fix.partition(": import")[2]
    if case.name.endswith(("another_method", "quantised_and_not_declared")):
        assert not code  # what else the library writes is not in the tensors
        return
    exec(f"import{code}", {})
    assert "CK236" not in {f.code for f in api.inspect(tmp_path / "model.safetensors").findings}
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"


def test_a_configuration_within_another_is_corrected(tmp_path):
    case = next(c for c in list_cases("CK236") if c.name.endswith("declared_and_not_quantised"))
    case.make(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    nested = {"model_type": "llava", "text_config": config}
    (tmp_path / "config.json").write_text(json.dumps(nested))
    finding = find_own(case, api.inspect(tmp_path / "model.safetensors"))
    exec(finding.fix[finding.fix.index("import json") :], {})
    assert "CK236" not in {f.code for f in api.inspect(tmp_path / "model.safetensors").findings}
