"""What computes: plain modules, images (B, C, H, W) in [0, 1] -> logits (B, K). This file is the catalogue.

Every network keeps its constructor's arguments as attributes of the same names: checkpoints record them. A critic
takes classes as well as images.
"""

from networks.critic import Critic
from networks.mnist import MLP, LeNet5, MadryCNN, SmallCNN
from networks.nin import NIN
from networks.normalize import Normalize
from networks.whiten import Whiten

__all__ = ["MLP", "NIN", "Critic", "LeNet5", "MadryCNN", "Normalize", "SmallCNN", "Whiten"]
