"""Vote over several passes through a stochastic defense."""

from typing import Literal

import torch
from torch import Tensor, nn

from adversarial_lightning.attacks.core.checks import check_arguments
from adversarial_lightning.errors import UserError


class Voting(nn.Module):
    """Vote or mean over `votes` passes through a stochastic model; the last entry in a list of defenses.

    MALADE's future work (Srinivasan et al. 2021). With "vote", logits are the counts of the votes plus half of the mean
    probabilities, which decide ties; backwards they are the mean logits (BPDA), so that gradient attacks see something.
    A logit that is not finite in any pass makes the answer NaN.

    Args:
        classifier: images in [0, 1] -> logits, stochastic.
        votes: number of passes.
        mode: what is combined: votes for the class with the largest logit, logits, or (the logarithm of the mean
            of) probabilities.
    """

    def __init__(
        self, classifier: nn.Module, votes: int = 10, mode: Literal["vote", "mean_logits", "mean_probs"] = "vote"
    ) -> None:
        super().__init__()
        check_arguments(Voting, mode=mode)
        if votes < 1:
            raise UserError(f"votes must be at least 1, not {votes}")
        self.classifier, self.votes, self.mode = classifier, votes, mode

    def forward(self, x: Tensor) -> Tensor:
        logits = torch.stack([self.classifier(x) for _ in range(self.votes)])  # (V, B, K)
        if self.mode == "mean_logits":
            return logits.mean(0)
        if self.mode == "mean_probs":
            return logits.log_softmax(2).logsumexp(0)
        counts = torch.zeros_like(logits).scatter_(2, logits.argmax(2, keepdim=True), 1.0).sum(0)
        answer = (counts + logits.softmax(2).mean(0) / 2).detach()
        surrogate = logits.mean(0)
        return answer + (surrogate - surrogate.detach())
