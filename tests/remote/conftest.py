"""Real checkpoints, and real servers that give them."""

import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from remote.hub import hub
from remote.servers import Site, serving
from safetensors.torch import save_file


def tensors(count: int, size: int, seed: int = 0) -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    return {f"layers.{n}.weight": torch.randn(size, size, generator=made) for n in range(count)}


def save_sharded(folder: Path, shards: int, count: int, size: int) -> None:
    folder.mkdir()
    weight_map: dict[str, str] = {}
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        held = {f"s{number}.{key}": t for key, t in tensors(count, size, number).items()}
        save_file(held, folder / name)
        weight_map |= dict.fromkeys(held, name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of each kind."""
    import torch.distributed.checkpoint as dcp

    folder = tmp_path_factory.mktemp("shelf")
    whole = {"state_dict": tensors(60, 32), "epoch": 3, "config": {"d": 32}}
    torch.save(whole, folder / "zip.pth")
    torch.save(tensors(60, 32), folder / "legacy.pth", _use_new_zipfile_serialization=False)
    save_file(tensors(60, 32), folder / "plain.safetensors")
    save_sharded(folder / "sharded", 5, 8, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": tensors(12, 32), "step": 7}, checkpoint_id=folder / "dcp")
    return folder


@pytest.fixture
def site(shelf: Path) -> Iterator[Site]:
    """Serve the folder over http."""
    with serving(shelf) as found:
        yield found


@pytest.fixture(scope="session")
def s3(shelf: Path) -> Iterator[str]:
    """Give the endpoint of a server of S3 whose bucket `shelf` has the folder."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    client = boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1",
        aws_access_key_id="me", aws_secret_access_key="secret",
    )  # fmt: skip
    client.create_bucket(Bucket="shelf")
    for file in shelf.rglob("*"):
        if file.is_file():
            name = str(file.relative_to(shelf))
            client.upload_file(str(file), "shelf", name, ExtraArgs={"ACL": "public-read"})
    yield url
    server.stop()


@pytest.fixture
def aws(s3: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Point every AWS client of this process to that server."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return s3


@pytest.fixture
def endpoint(shelf: Path) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Give the endpoint of a hub, and what it is asked."""
    with hub(shelf) as found:
        yield found
