"""Networks of timm and torchvision with their own normalisation inside: images in [0, 1] as for all networks."""

from typing import Any

import torch
from torch import Tensor, nn

from adversarial_lightning.errors import UserError
from adversarial_lightning.networks.foreign_weights import load_weights
from adversarial_lightning.networks.normalize import Normalize

PRETRAINED = "pretrained"
TWO_HEADS = ("inception_v3", "googlenet")


class TimmClassifier(nn.Module):
    """Image classifier of timm, by its name; mean and std are those of its configuration, if none are given.

    Raises ValueError for names that timm does not have: addresses of model hubs are no names.

    Args:
        name: name of the model, with or without a tag: ``resnet50``, ``vit_base_patch16_224.augreg_in21k_ft_in1k``.
        num_classes: number of logits; none: the model's.
        weights: a file (see `load_weights`), ``pretrained`` for those that timm downloads, none for random ones. A
            checkpoint of this network holds them itself: evaluating it downloads nothing.
        mean, std: of the images that the weights were trained on, one value a channel.
    """

    def __init__(
        self,
        name: str = "resnet18",
        num_classes: int | None = 1000,
        weights: str | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:
        super().__init__()
        import timm  # a second to import, and no other network needs it

        if not timm.is_model(name):
            close = ", ".join(timm.list_models(f"*{name.partition('.')[0][:8]}*")[:5])
            raise UserError(f"timm has no model {name!r}{f'; it has {close} ...' if close else ''}")
        self.name, self.num_classes, self.weights, self.mean, self.std = name, num_classes, weights, mean, std
        settings: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
        model = timm.create_model(name, pretrained=weights == PRETRAINED, **settings)
        config = timm.data.resolve_model_data_config(model)
        self.normalize, self.model = Normalize(mean or config["mean"], std or config["std"]), model
        if weights not in (None, PRETRAINED):
            load_weights(self, weights)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(self.normalize(x))
        return logits


class TorchvisionClassifier(nn.Module):
    """Image classifier of torchvision, by its name; mean and std are, if none are given, ImageNet's.

    Raises ValueError for names that torchvision does not have.

    Args:
        name: name of the model: ``resnet50``, ``vgg19``, ``inception_v3``.
        num_classes: number of logits; other than 1000 only without pretrained weights.
        weights: a file (see `load_weights`), ``pretrained`` for torchvision's best, or their name, such as
            ``IMAGENET1K_V1``, which torchvision downloads; none for random ones. A checkpoint of this network
            holds them itself: evaluating it downloads nothing.
        mean, std: of the images that the weights were trained on, one value a channel.
    """

    def __init__(
        self,
        name: str = "resnet18",
        num_classes: int = 1000,
        weights: str | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:
        super().__init__()
        from torchvision import models  # a second to import, and no other network needs it

        if name not in models.list_models(module=models):
            close = ", ".join(models.list_models(module=models, include=f"*{name[:6]}*")[:5])
            raise UserError(f"torchvision has no classifier {name!r}{f'; it has {close} ...' if close else ''}")
        known = models.get_model_weights(name)
        own = {w.name: w for w in known} | {PRETRAINED: known.DEFAULT}
        self.name, self.num_classes, self.weights, self.mean, self.std = name, num_classes, weights, mean, std
        if weights in own:
            if num_classes != 1000:
                raise UserError(f"the weights {weights} of {name} have 1000 classes, num_classes is {num_classes}")
            self.model = models.get_model(name, weights=own[weights])
            if name == "inception_v3":  # torchvision keeps its second head, and drops GoogLeNet's
                self.model.aux_logits, self.model.AuxLogits = False, None
        else:
            # One head, and pixels in [-1, 1] as in torchvision's weights, which may come later, from a file.
            given = {"aux_logits": False, "init_weights": False, "transform_input": True}
            self.model = models.get_model(name, num_classes=num_classes, **(given if name in TWO_HEADS else {}))
        transforms = known.DEFAULT.transforms()
        self.normalize = Normalize(mean or transforms.mean, std or transforms.std)
        if weights is not None and weights not in own:
            load_weights(self, weights)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(self.normalize(x))
        return logits
