"""Global contrast normalisation and ZCA whitening as the first layer of a network."""

import torch
from torch import Tensor, nn

from adversarial_lightning.errors import UserError


class Whiten(nn.Module):
    """Whitening: each image to mean 0 and standard deviation 1, then all to a covariance near the identity (ZCA).

    It computes W (u - mean), with the normalised image u and W = U diag(1 / sqrt(s + 0.1)) U^T from the eigenvectors U
    and eigenvalues s of the covariance of the training images. `fit` computes mean and W, which are buffers, and so
    part of a checkpoint; before that W is the identity. The parameters are ours: Matyasko (2020, section 3.5) does not
    state them.

    Args:
        features: number of values of an image, C x H x W.
        regularization: added to the eigenvalues.
    """

    mean: Tensor
    matrix: Tensor
    fitted: Tensor

    def __init__(self, features: int, regularization: float = 0.1) -> None:
        super().__init__()
        self.features, self.regularization = features, regularization
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("matrix", torch.eye(features))
        self.register_buffer("fitted", torch.tensor(False))

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Compute mean and W from training images (N, C, H, W) in [0, 1], or bytes. ValueError for fewer than 2."""
        if len(x) < 2:
            raise UserError(f"whitening needs at least 2 training images, not {len(x)}")
        total = torch.zeros_like(self.mean, dtype=torch.float64)
        moment = torch.zeros_like(self.matrix, dtype=torch.float64)
        for part in x.split(1000):
            part = part.to(self.mean.device)
            u = self.contrast(part if part.is_floating_point() else part.float() / 255).double()
            total += u.sum(0)
            moment += u.T @ u
        mean = total / len(x)
        values, vectors = torch.linalg.eigh(moment / len(x) - mean[:, None] * mean)
        scale = (values.clamp_min(0) + self.regularization).rsqrt()
        self.mean.copy_(mean)
        self.matrix.copy_((vectors * scale) @ vectors.T)
        self.fitted.fill_(True)

    def contrast(self, x: Tensor) -> Tensor:
        """Images as rows (B, CHW) with mean 0 and standard deviation 1; an image of one colour becomes zeros."""
        flat = x.flatten(1)
        centred = flat - flat.mean(1, keepdim=True)
        # The standard deviation of an image of one colour has no gradient: hence the floor inside the root.
        return centred / (centred.square().mean(1, keepdim=True) + torch.finfo(x.dtype).eps ** 2).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        return ((self.contrast(x) - self.mean) @ self.matrix).view_as(x)
