"""A model in a Lightning module trains as in a loop that is written out."""

import pytest
import torch
import torch.nn.functional as F
from composition.hybrids import TREE, WithTree, clouds
from torch_geometric.loader import DataLoader

# Not among the packages for tests: it causes warnings of its own, and takes longer to
# import than the tests of this folder take to run.
lightning = pytest.importorskip(
    "pytorch_lightning", reason="Lightning is not installed"
)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = WithTree("gat").double()

    def loss(self, batch):
        return F.mse_loss(self.model(batch), batch.y)

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("loss", loss, batch_size=batch.num_graphs)
        return loss

    def predict_step(self, batch, batch_idx):
        return self.model(batch)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def loader():
    return DataLoader([TREE(cloud) for cloud in clouds([30, 0, 1, 9])], batch_size=2)


def test_training(tmp_path):
    module = Module()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        log_every_n_steps=1,
    )
    trainer.fit(module, loader())
    other = Module()
    optimiser = other.configure_optimizers()
    for _ in range(3):
        for batch in loader():
            optimiser.zero_grad()
            other.loss(batch).backward()
            optimiser.step()
    for a, b in zip(module.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    again = Module.load_from_checkpoint(tmp_path / "end.ckpt", weights_only=True)
    outs = trainer.predict(again, loader())
    for out, batch in zip(outs, loader(), strict=True):
        torch.testing.assert_close(out, other.eval().model(batch))
