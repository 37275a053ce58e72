"""Pairs of modules with unrelated layers of one shape: no key of the old one is the new one's."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

Factory = Callable[[], nn.Module | nn.Parameter | Tensor]


class Parts(nn.Module):
    """A body, and parts under dotted names; each part is used in its own way."""

    def __init__(self, parts: Mapping[str, Factory], *, activation: str = "tanh") -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.activation = activation
        for path, factory in parts.items():
            owner: nn.Module = self
            *owners, name = path.split(".")
            for segment in owners:
                if segment not in dict(owner.named_children()):
                    owner.add_module(segment, nn.Module())
                owner = owner.get_submodule(segment)
            part = factory()
            if isinstance(part, nn.Module):
                owner.add_module(name, part)
            elif isinstance(part, nn.Parameter):
                owner.register_parameter(name, part)
            else:
                owner.register_buffer(name, part)

    def forward(self, x: Tensor) -> Tensor:
        total = self.body(x)
        for key, tensor in self.state_dict().items():
            if not key.startswith("body.") and tensor.is_floating_point():
                total = total + getattr(torch, self.activation)(tensor).sum() * x.mean()
        return total


def linear() -> nn.Module:
    return nn.Linear(4, 4)


def norm() -> nn.Module:
    return nn.LayerNorm(4)


def conv() -> nn.Module:
    return nn.Conv2d(2, 2, 3)


def embedding() -> nn.Module:
    return nn.Embedding(6, 4)


def batch_norm() -> nn.Module:
    return nn.BatchNorm1d(4)


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.randn(1, 1, 4))


def scalar() -> nn.Parameter:
    return nn.Parameter(torch.randn(()))


def buffer() -> Tensor:
    return torch.randn(4)


PAIRS: dict[str, tuple[Mapping[str, Factory], Mapping[str, Factory]]] = {
    "transform and pooler": ({"head.transform.dense": linear}, {"pooler.dense": linear}),
    "decoder and classifier": ({"decoder": linear}, {"classifier": linear}),
    "teacher and student": ({"teacher.fc": linear, "teacher.ln": norm},
                            {"student.fc": linear, "student.ln": norm}),
    "ln_pre and ln_post": ({"ln_pre": norm}, {"ln_post": norm}),
    "two buffers": ({"mean": buffer}, {"std": buffer}),
    "query and key": ({"attn.q_proj": linear}, {"attn.k_proj": linear}),
    "encoder and decoder": ({"encoder.l": linear, "encoder.n": norm},
                            {"decoder.l": linear, "decoder.n": norm}),
    "actor and critic": ({"actor.0": linear, "actor.2": linear},
                         {"critic.0": linear, "critic.2": linear}),
    "head and auxiliary head": ({"head": linear}, {"aux_head": linear}),
    "embedding and output": ({"embed_tokens": embedding}, {"lm_head": embedding}),
    "two batch norms": ({"norm_a": batch_norm}, {"norm_b": batch_norm}),
    "gate and up": ({"mlp.gate_proj": linear}, {"mlp.up_proj": linear}),
    "generator and discriminator": ({"generator.main.0": conv}, {"discriminator.main.0": conv}),
    "source and target embedding": ({"src_embed": embedding}, {"tgt_embed": embedding}),
    "position and type embedding": ({"position_embeddings": embedding},
                                    {"token_type_embeddings": embedding}),
    "online and target": ({"online.projector": linear}, {"target.projector": linear}),
    "fc1 and fc2": ({"fc1": linear}, {"fc2": linear}),
    "shortcut and main": ({"shortcut.conv": conv}, {"main.conv": conv}),
    "mean and log variance": ({"fc_mu": linear}, {"fc_logvar": linear}),
    "scale and shift": ({"film.scale": parameter}, {"film.shift": parameter}),
    "class weights and priors": ({"class_weights": buffer}, {"priors": buffer}),
    "self and cross attention": ({"self_attn.out_proj": linear}, {"cross_attn.out_proj": linear}),
    "text and visual projection": ({"text_projection": linear}, {"visual_projection": linear}),
    "down and up": ({"lora_down": linear}, {"lora_up": linear}),
    "depthwise and dilated": ({"dw": conv}, {"dil": conv}),
    "places in a Sequential": ({"net.0": linear}, {"net.3": linear}),
    "codebook and its average": ({"quant.embed": buffer}, {"quant.embed_avg": buffer}),
    "mask and class token": ({"mask_token": parameter}, {"cls_token": parameter}),
    "temperature and bias": ({"logit_scale": scalar}, {"logit_bias": scalar}),
    "gamma of no LayerNorm": ({"scale.gamma": parameter}, {"scale.weight": parameter}),
    "layers and adapters": ({f"layers.{n}.fc": linear for n in range(3)},
                            {f"adapters.{n}.fc": linear for n in range(3)}),
    "three for one": ({"a": linear, "b": linear, "c": linear}, {"d": linear}),
    "one for three": ({"d": linear}, {"a": linear, "b": linear, "c": linear}),
    "two swapped": ({"left": linear, "right": linear}, {"first": linear, "second": linear}),
}  # fmt: skip


def make_old(name: str) -> Parts:
    return Parts(PAIRS[name][0])


def make_new(name: str) -> Parts:
    return Parts(PAIRS[name][1], activation="sin")


def make_renamed(name: str) -> Parts:
    """Return a module that computes what the old one does, under the new names."""
    return Parts(PAIRS[name][1])
