"""A tiny Mixtral, "fine-tuned" for a step, and a LoRA adapter of it: folders as users have them."""

import warnings

import peft
import torch
import transformers

warnings.simplefilter("ignore")
transformers.utils.logging.disable_progress_bar()
torch.manual_seed(0)
config = transformers.MixtralConfig(
    vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=2, num_local_experts=4, max_position_embeddings=32,
    pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip


def train_a_step(model: torch.nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tokens = torch.arange(3, 19).reshape(2, 8)
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()


model = transformers.MixtralForCausalLM(config)
train_a_step(model)
model.save_pretrained("my-model")

base = transformers.MixtralForCausalLM.from_pretrained("my-model")
lora = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
adapted = peft.get_peft_model(base, lora)
train_a_step(adapted)
adapted.save_pretrained("my-adapter")
