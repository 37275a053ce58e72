"""Files and folders of libraries that are tried where they are installed, and judged by them."""

import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ckptool

transformers = pytest.importorskip("transformers", reason="the extra `frameworks` is not installed")
SIZES = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
         "num_attention_heads": 1, "max_position_embeddings": 8}  # fmt: skip


def save_sentence_transformer(folder: Path) -> None:
    """Write what SentenceTransformer.save() writes: the first module's files, a folder for each."""
    transformers.BertModel(transformers.BertConfig(**SIZES)).save_pretrained(folder)
    (folder / "modules.json").write_text("[]")
    for name, tensors in {"1_Pooling": {}, "2_Dense": {"linear.weight": torch.ones(4, 8)}}.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
        if tensors:
            save_file(tensors, folder / name / "model.safetensors")


def test_modules_after_the_first_are_said_to_be_not_checked(tmp_path):
    folder = tmp_path / "model"
    save_sentence_transformer(folder)
    _, info = transformers.BertModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    report = ckptool.diff(folder)
    assert report.verdict == "loads with from_pretrained()"
    assert "module `2_Dense`" in {skipped.what for skipped in report.skipped}
    assert "1_Pooling" not in str(report.skipped)
    (folder / "modules.json").unlink()
    assert "2_Dense" not in str(ckptool.diff(folder).skipped)


def test_a_gate_of_sentence_transformers_judges_what_it_loads(tmp_path):
    library = pytest.importorskip("sentence_transformers")
    models = pytest.importorskip("sentence_transformers.models")
    base, folder = tmp_path / "base", tmp_path / "model"
    transformers.BertModel(transformers.BertConfig(**SIZES)).save_pretrained(base)
    letters = [chr(97 + n) for n in range(11)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    (base / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(base / "vocab.txt")).save_pretrained(base)
    parts = [models.Transformer(str(base)), models.Pooling(8)]
    model = library.SentenceTransformer(modules=[*parts, models.Dense(8, 4)])
    model.save(str(folder))
    loaded = library.SentenceTransformer(str(folder)).state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in model.state_dict().items())
    assert ckptool.gate(folder).exit_code == 0
    assert "module `2_Dense`" in {skipped.what for skipped in ckptool.diff(folder).skipped}
    path = folder / "2_Dense" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(Exception, match=r"(?i)safetensors|header|incomplete"):
        library.SentenceTransformer(str(folder))
    assert ckptool.gate(folder).exit_code != 0


def test_a_pickled_yolo_is_converted_by_the_fix_of_its_finding(tmp_path, monkeypatch, run_command):
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    ultralytics = pytest.importorskip("ultralytics")
    from ultralytics.nn.tasks import DetectionModel

    saved = str(tmp_path / "yolo.pt")
    ultralytics.YOLO("yolov8n.yaml").save(saved)
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(saved)
    trained = torch.load(saved, weights_only=False)["model"].state_dict()
    report = ckptool.inspect(saved)
    (finding,) = [f for f in report.findings if f.code == "CK302"]
    command = shlex.split(finding.fix.rpartition(": ")[2])
    assert command[:2] == ["ckptool", "convert"]
    result = run_command(*command[1:], cwd=tmp_path)
    assert result.code == 0, result.err
    converted = tmp_path / command[-1]
    state = torch.load(converted)["model"]
    assert state.keys() == trained.keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in trained.items())
    module = DetectionModel("yolov8n.yaml", verbose=False)
    assert not any(module.load_state_dict(state))
    words = "ultralytics.nn.tasks:DetectionModel('yolov8n.yaml', verbose=False)"
    for path in (saved, str(converted)):
        compared = run_command("diff", path, "-m", words, "--no-config")
        assert compared.code == 0, compared.out
        assert "355 match, 0 missing, 0 unexpected" in compared.out


def test_the_call_that_is_named_for_gguf_reads_it(tmp_path):
    gguf = pytest.importorskip("gguf", reason="transformers reads GGUF with it")
    import inspect

    import numpy as np

    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_tensor("token_embd.weight", np.ones((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (message,) = (str(error) for error in ckptool.inspect(path).errors)
    assert "from_pretrained(FOLDER, gguf_file=NAME) of transformers" in message
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    source = inspect.getsource(transformers.PreTrainedModel.from_pretrained)
    assert "gguf_file" in source
    tensors = load_gguf_checkpoint(str(path), return_tensors=False)
    assert tensors["config"]
