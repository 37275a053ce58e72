"""Framework x container x defect: diff and gate against the framework's own load.

The framework loads the same folder in the test; what it misses, drops or raises is the truth.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from loaders.transformers_zoo import PLAIN, build_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import ckptool
from ckptool.errors import CkptoolError

accelerate = pytest.importorskip("accelerate", reason="the extra `frameworks` is not installed")
diffusers = pytest.importorskip("diffusers", reason="the extra `frameworks` is not installed")
peft = pytest.importorskip("peft", reason="the extra `frameworks` is not installed")
transformers = pytest.importorskip("transformers", reason="the extra is not installed")

pytestmark = pytest.mark.matrix

State = dict[str, Tensor]
LLAMA = "LlamaForCausalLM"


class Net(nn.Module):
    """A module without a configuration, as accelerate loads it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.body(x))


def save_transformers(folder: Path) -> State:
    build_model(LLAMA, PLAIN[LLAMA]).save_pretrained(folder)
    return transformers.LlamaForCausalLM.from_pretrained(folder).state_dict()


def load_transformers(folder: Path) -> bool:
    _, info = transformers.LlamaForCausalLM.from_pretrained(folder, output_loading_info=True)
    return not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def save_diffusers(folder: Path) -> State:
    from loaders.test_diffusers_models import build

    model = build("UNet2DModel")
    model.save_pretrained(folder)
    return model.state_dict()


def load_diffusers(folder: Path) -> bool:
    """Whether the tensors are those of the files: `missing_keys` is of the index, not of them.

    What the index leaves out is called newly initialized, and loaded; what it says and no shard
    has is left on meta without a word.
    """
    loaded, info = diffusers.UNet2DModel.from_pretrained(folder, output_loading_info=True)
    saved = {k: t for path in folder.iterdir() for k, t in read_file(path).items()}
    has_all = all(
        key in saved and not tensor.is_meta and torch.equal(tensor, saved[key])
        for key, tensor in loaded.state_dict().items()
    )
    return has_all and not (info["unexpected_keys"] or info["mismatched_keys"])


def read_file(path: Path) -> State:
    """Return the tensors of a file of weights, {} for any other file."""
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, weights_only=True) if path.suffix == ".bin" else {}


def save_peft(folder: Path) -> State:
    base = folder.parent / "base"
    build_model(LLAMA, PLAIN[LLAMA]).save_pretrained(base)
    model = transformers.LlamaForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = peft.get_peft_model(model, config)
    model.save_pretrained(folder)
    return peft.get_peft_model_state_dict(model)


def load_peft(folder: Path) -> bool:
    base = transformers.LlamaForCausalLM.from_pretrained(folder.parent / "base")
    model = peft.PeftModel.from_pretrained(base, folder)
    result = model.load_adapter(str(folder), "default")
    return not (result.missing_keys or result.unexpected_keys)


def save_accelerate(folder: Path) -> State:
    folder.mkdir()
    return Net().state_dict()


def load_accelerate(folder: Path) -> bool:
    """Whether the load reports nothing, and leaves no tensor as the constructor made it."""
    torch.manual_seed(1)
    module = Net()
    nn.init.ones_(module.body[1].running_mean)
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    whole_file = next((f for f in folder.iterdir() if "-of-" not in f.name), None)
    is_index = whole_file is not None and whole_file.name.endswith(".index.json")
    place = str(folder if is_index else whole_file)
    accelerate.load_checkpoint_in_model(module, place, strict=True)
    changed = {k for k, t in module.state_dict().items() if not torch.equal(t, before[k])}
    # The counter and the scale of a fresh BatchNorm are the same before and after.
    return {*before} - changed <= {f"body.1.{n}" for n in ("weight", "bias", "running_var",
                                                           "num_batches_tracked")}  # fmt: skip


STEMS = {"transformers": ("model", "pytorch_model"), "accelerate": ("model", "pytorch_model"),
         "diffusers": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
         "peft": ("adapter_model", "adapter_model")}  # fmt: skip
FRAMEWORKS: Mapping[str, tuple[Callable[[Path], State], Callable[[Path], bool]]] = {
    "transformers": (save_transformers, load_transformers),
    "diffusers": (save_diffusers, load_diffusers),
    "peft": (save_peft, load_peft),
    "accelerate": (save_accelerate, load_accelerate),
}
CONTAINERS = ("safetensors", "bin", "safetensors shards", "bin shards")
UNSHARDED = {("peft", "safetensors shards"), ("peft", "bin shards"), ("diffusers", "bin shards")}
"""What the framework does not look for."""


def choose_key(state: State) -> str:
    """Return the key that is changed: the largest matrix, of the last of the sorted keys."""
    return max((k for k in sorted(state) if state[k].dim() > 1), key=lambda k: state[k].numel())


def cut(state: State) -> None:
    key = choose_key(state)
    state[key] = state[key][:-1].clone()


STATE_DEFECTS: Mapping[str, Callable[[State], object]] = {
    "whole": lambda state: None,
    "a key dropped": lambda state: state.pop(choose_key(state)),
    "a key too many": lambda state: state.update({"surplus.weight": torch.ones(2)}),
    "another shape": cut,
    "wrapped": lambda state: [state.update({f"module.{k}": state.pop(k)}) for k in [*state]],
}
SHARD_DEFECTS = ("in another shard", "not in the index", "in no shard", "a shard lost")


def write_file(state: State, path: Path) -> None:
    tensors = {key: tensor.detach().clone().contiguous() for key, tensor in state.items()}
    if path.suffix == ".safetensors":
        save_file(tensors, path, {"format": "pt"})
    else:
        torch.save(tensors, path)


def write_weights(folder: Path, framework: str, container: str, defect: str, state: State) -> None:
    """Replace the weights of a folder by the state in a container, with the defect."""
    for path in [*folder.glob("*.safetensors*"), *folder.glob("*.bin*")]:
        path.unlink()
    suffix, _, shards = container.partition(" ")
    stem = STEMS[framework][suffix == "bin"]
    if not shards:
        write_file(state, folder / f"{stem}.{suffix}")
        return
    names = [f"{stem}-0000{number}-of-00002.{suffix}" for number in (1, 2)]
    key = choose_key(state)
    keys = [key, *(k for k in state if k != key)]
    halves = [keys[: len(keys) // 2], keys[len(keys) // 2 :]]
    weight_map = {k: name for name, half in zip(names, halves, strict=True) for k in half}
    if defect == "in another shard":
        weight_map[key] = names[1]
    elif defect == "not in the index":
        del weight_map[key]
    elif defect == "in no shard":
        halves[0].remove(key)
    for name, half in zip(names, halves, strict=True):
        write_file({k: state[k] for k in half}, folder / name)
    if defect == "a shard lost":
        (folder / names[1]).unlink()
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))


def ask_framework(framework: str, folder: Path) -> bool:
    """Whether the framework's own load is whole; one that raises is not."""
    try:
        return FRAMEWORKS[framework][1](folder)
    except (OSError, RuntimeError, ValueError, NotImplementedError, KeyError):
        return False


CASES = [
    (framework, container, defect)
    for framework in FRAMEWORKS
    for container in CONTAINERS
    if (framework, container) not in UNSHARDED
    for defect in (*STATE_DEFECTS, *(SHARD_DEFECTS if "shards" in container else ()))
]


@pytest.mark.parametrize(("framework", "container", "defect"), CASES)
def test_verdicts_are_those_of_the_frameworks_load(framework, container, defect, tmp_path):
    folder = tmp_path / "model"
    state = FRAMEWORKS[framework][0](folder)
    STATE_DEFECTS.get(defect, STATE_DEFECTS["whole"])(state)
    write_weights(folder, framework, container, defect, state)
    is_whole = ask_framework(framework, folder)
    module = {"module": Net()} if framework == "accelerate" else {}
    if framework == "accelerate" and defect == "in another shard":
        # Nothing says that accelerate loads the folder: readers of single keys do not find it.
        assert is_whole
        (finding,) = [f for f in ckptool.gate(folder, **module).findings if f.code == "CK602"]
        assert (finding.level, "of accelerate finds it" in finding.message) == ("error", True)
        return
    for command in (ckptool.diff, ckptool.gate):
        code, findings = run(command, folder, module)
        assert (code == 0) == is_whole, (command.__name__, findings)


def run(command, folder: Path, module: Mapping[str, object]) -> tuple[int, object]:
    """Return the exit code of a command, and its findings or the error that it raises."""
    try:
        report = command(folder, **module)
    except CkptoolError as error:
        return 2, error
    return report.exit_code, [(f.code, f.level, f.message) for f in report.findings]
