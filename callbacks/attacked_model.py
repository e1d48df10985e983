"""Choice of the model that a callback attacks: what the module computes, not only its network."""

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from adversarial_lightning.attacks import Noise, noise_for
from adversarial_lightning.errors import UserError
from adversarial_lightning.evaluation.outcomes.outcome import PROBABILITIES
from adversarial_lightning.networks.eval_mode import are_probabilities, frozen_eval


def attacked_model(pl_module: pl.LightningModule, x: Tensor, index: Tensor) -> nn.Module:
    """Images -> logits as `pl_module` computes them; `x` (B, C, H, W) is a first batch, `index` (B,) its numbers.

    That is `pl_module.network` where the module's ``forward`` gives the network's logits, or their softmax, or is not
    written; otherwise the module itself, which may normalise before its network. Raises ValueError where neither gives
    logits.
    """
    network, name = getattr(pl_module, "network", None), type(pl_module).__name__
    try:
        said = _answer(pl_module, x, index)
    except NotImplementedError as error:
        if isinstance(network, nn.Module):
            return network
        raise UserError(f"{name} has neither a forward nor a network: write forward(x), images -> logits") from error
    if not isinstance(said, Tensor):
        raise UserError(f"forward of {name} returned {type(said).__name__}: attacks need logits (B, K)")
    if isinstance(network, nn.Module):
        own = _answer(network, x, index)
        if isinstance(own, Tensor) and own.shape == said.shape and _same(own, said):
            return network
    if said.ndim == 2 and bool(are_probabilities(said)):
        raise UserError(PROBABILITIES)
    return pl_module


def _answer(model: nn.Module, x: Tensor, index: Tensor) -> object:
    with frozen_eval(model), torch.no_grad(), noise_for(model, Noise.keyed(0, index)):
        return model(x.clone())


def _same(own: Tensor, said: Tensor) -> bool:
    """Whether `said` are the logits `own`, or their softmax: a network whose outputs are shown as probabilities."""
    return torch.equal(own, said) or (own.ndim == 2 and torch.allclose(own.softmax(1), said))
