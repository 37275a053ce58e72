"""transformers Trainer: a tiny random model, a checkpoint, and a load with a new head."""

import logging
import os

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    Trainer,
    TrainingArguments,
)

logging.disable(logging.WARNING)
torch.manual_seed(0)
config = BertConfig(
    vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
)
BertModel(config).save_pretrained("base")
model = BertForSequenceClassification.from_pretrained("base")
data = [{"input_ids": [1, 2, 3], "labels": index % 2} for index in range(8)]
arguments = TrainingArguments(
    "out",
    max_steps=4,
    save_steps=2,
    report_to=[],
    use_cpu=True,
    disable_tqdm=True,
    seed=0,
    logging_steps=4,
    per_device_train_batch_size=2,
    save_total_limit=None,
)
trainer = Trainer(model, arguments, train_dataset=data)
result = trainer.train()
print(result.training_loss, torch.rand(1).item())
