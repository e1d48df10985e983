"""Attacks with EOT inside a training step of two processes: they leave everything as it was, and find the same."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from victims import BatchNormNet

from adversarial_lightning.attacks import APGD, PGD, Attack, Noise, Restarts, noise_for
from adversarial_lightning.defenses import Purified, Purifier

ATTACKS: list[Attack] = [
    PGD("l2", eps=0.5, steps=3, eot_samples=3),
    Restarts(APGD("linf", eps=0.1, steps=3, eot_samples=2), 2),
]


class Jitter(Purifier):
    stochastic = True

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * self.own_noise(x).normal(x)


class Step(nn.Module):
    """A training step as DDP wraps it: adversarial images, then the loss at them, of a model that draws numbers."""

    def __init__(self, attack: Attack) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network, self.attack = Purified(BatchNormNet(), Jitter()).double(), attack
        self.network.classifier.layers[2].eval()  # frozen on purpose

    def forward(self, x: Tensor, y: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        noise = Noise.keyed(7, index)
        before = self.state()
        z = self.attack(self.network, x, y, noise.fork("attacker"))
        for name, value in self.state().items():
            assert torch.equal(value, before[name]), f"the attack changed {name}"
        for module in (self.network.classifier.layers[1], self.network.classifier.layers[3]):
            module.eval()  # batch statistics and dropout would tell the number of processes
        with noise_for(self.network, noise.fork("defender")):
            return F.cross_entropy(self.network(z), y), z

    def state(self) -> dict[str, Tensor]:
        """Everything that an attack could touch."""
        found = {f"weight {k}": v.detach().clone() for k, v in self.network.state_dict().items()}
        found |= {f"gradient {k}": p.grad.clone() for k, p in self.network.named_parameters() if p.grad is not None}
        found |= {f"freedom {k}": torch.tensor(p.requires_grad) for k, p in self.network.named_parameters()}
        found |= {f"mode {k}": torch.tensor(m.training) for k, m in self.network.named_modules()}
        return {**found, "generator": torch.get_rng_state(), "noise": torch.tensor(self.network.purifier.noise is None)}


def train(step: nn.Module, rows: slice) -> tuple[Tensor, Tensor]:
    """Adversarial images of some rows, and the gradients of the weights, which were 3 before."""
    for p in step.parameters():
        p.grad = torch.full_like(p, 3.0)
    x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y, index = torch.arange(8) % 3, torch.arange(20, 28)
    loss, z = step(x[rows], y[rows], index[rows])
    loss.backward()
    return z, torch.cat([p.grad.flatten() - 3 for p in step.parameters() if p.grad is not None])


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = [train(DistributedDataParallel(Step(attack)), slice(rank, None, 2)) for attack in ATTACKS]
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    os._exit(0)  # gloo's threads may abort a process that leaves in the usual way


@pytest.mark.long
def test_two_processes_find_what_one_finds_and_learn_the_same(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for i, attack in enumerate(ATTACKS):
        z, gradient = train(Step(attack), slice(None))
        for rank, found in enumerate(ranks):
            assert torch.allclose(found[i][0], z[rank::2], atol=1e-9)
            assert torch.allclose(found[i][1], gradient, atol=1e-9) and gradient.abs().max() > 1e-3
