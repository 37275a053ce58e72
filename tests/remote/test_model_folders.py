"""A framework's folder that is remote: its configuration is read as its weights are."""

from pathlib import Path

import pytest
import torch
from files import save

pytest.importorskip("transformers", reason="the extra `frameworks` is not installed")

from loaders.transformers_zoo import PLAIN, build_model


@pytest.fixture
def bucket(aws: str, tmp_path: Path) -> str:
    """Give a folder on S3 with a model, and one with a configuration that names code."""
    import boto3

    client = boto3.client("s3", endpoint_url=aws)
    build_model("LlamaForCausalLM", PLAIN["LlamaForCausalLM"]).save_pretrained(tmp_path / "llama")
    (tmp_path / "evil").mkdir()
    save(tmp_path / "evil" / "pytorch_model.bin", {"a": torch.ones(2)})
    (tmp_path / "evil" / "config.json").write_text('{"model_type": "x", "auto_map": {"a": "b.C"}}')
    for file in tmp_path.rglob("*"):
        if file.is_file():
            client.upload_file(str(file), "shelf", str(file.relative_to(tmp_path)))
    return "s3://shelf"


@pytest.mark.parametrize("command", ["diff", "gate", "verify", "audit"])
def test_a_remote_folder_is_judged_as_here(command, bucket, tmp_path, run_command):
    far = run_command(command, f"{bucket}/llama", "--no-config")
    near = run_command(command, str(tmp_path / "llama"), "--no-config")
    assert far.code == near.code == 0, far.err
    assert f"{bucket}/llama" in far.notices
    assert far.out.splitlines()[0] == near.out.splitlines()[0]


def test_a_remote_configuration_that_names_code_is_refused(bucket, run_command):
    result = run_command("diff", f"{bucket}/evil", "--no-config")
    assert result.code == 2
    assert "`auto_map`" in result.err
