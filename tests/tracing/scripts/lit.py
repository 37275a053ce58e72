"""Lightning: a queue that is a plain attribute, and a counter."""

import logging
import warnings

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

warnings.filterwarnings("ignore")
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


class Lit(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 1)
        self.queue = torch.zeros(8)

    def training_step(self, batch, index):
        (x,) = batch
        loss = self.net(x).square().mean()
        self.queue = torch.cat([self.queue[1:], loss.detach()[None]])
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


pl.seed_everything(0, verbose=False)
model = Lit()
data = DataLoader(TensorDataset(torch.randn(16, 4)), batch_size=4, num_workers=0)
quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
trainer = pl.Trainer(max_epochs=2, accelerator="cpu", **quiet, enable_checkpointing=False)
trainer.fit(model, data)
trainer.save_checkpoint("lit.ckpt")
again = Lit.load_from_checkpoint("lit.ckpt")
print(model.queue.sum().item(), again.queue.sum().item(), torch.rand(1).item())
