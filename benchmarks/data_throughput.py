"""Throughput and memory of data loaders, against training and against torchvision's pipelines.

    python benchmarks/data_throughput.py [--rounds 5] [--images 2000]

Everything is generated: images in memory, and a folder of JPEGs of ImageNet's usual size (about 500x375).
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timing import ratios
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, default_convert
from torchvision import datasets
from torchvision.transforms import v2

from adversarial_lightning.attacks import PGD, Noise
from adversarial_lightning.datamodules import ImageNet
from adversarial_lightning.datamodules.augment import crop_and_flip
from adversarial_lightning.datamodules.cache import cached
from adversarial_lightning.datamodules.imagenet import wnids
from adversarial_lightning.datamodules.images import TensorImages, as_float
from adversarial_lightning.datamodules.samplers import EpochShuffle, ResumableLoader
from adversarial_lightning.networks import SmallCNN

BATCH = 128


def memory() -> float:
    """Resident memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def loader(data: TensorImages) -> ResumableLoader:
    return ResumableLoader(data.stored(), batch_size=BATCH, sampler=EpochShuffle(data), collate_fn=default_convert)


def against_training(rounds: int) -> float:
    """Samples/s of the MNIST loader over those of SmallCNN's PGD-10 training, by CPU time."""
    data = TensorImages(torch.randint(0, 256, (60_000, 1, 28, 28), dtype=torch.uint8), torch.arange(60_000) % 10)
    network, attack = SmallCNN(), PGD(eps=0.3, steps=10, step_size=0.075)
    x, y, index = data.__getitems__(range(BATCH))

    def train() -> None:
        z = attack(network, x, y, Noise.keyed(0, index))
        cross_entropy(network(z), y).backward()

    def load() -> None:
        for x, _, _ in loader(data):
            as_float(x)

    found = ratios({"train": train, "load": load}, rounds)["load"][0]  # one epoch of 469 batches over one step
    return 60_000 / BATCH / found


class PerSample(datasets.VisionDataset):
    """CIFAR-10 as in torchvision: one PIL image at a time."""

    def __init__(self, pixels: np.ndarray, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        super().__init__("", transform=transform)
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        assert self.transform is not None
        return self.transform(Image.fromarray(self.pixels[index])), index % 10


def against_torchvision(rounds: int, count: int = 5000) -> float:
    """Samples/s of random crops and flips of 32x32 images over torchvision's per-sample pipeline, by CPU time."""
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    data = TensorImages(pixels, torch.arange(count) % 10)
    crops = [
        v2.RandomCrop(32, padding=4),
        v2.RandomHorizontalFlip(),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
    ]
    theirs = PerSample(pixels.permute(0, 2, 3, 1).contiguous().numpy(), v2.Compose(crops))

    def ours() -> None:
        for x, _, index in loader(data):
            as_float(crop_and_flip(x, index, 4, 0, 0))

    def torchvisions() -> None:
        for _ in DataLoader(theirs, batch_size=BATCH, shuffle=True):
            pass

    return ratios({"ours": ours, "torchvision": torchvisions}, rounds)["torchvision"][0]


def write_jpegs(folder: Path, count: int) -> None:
    """Write `{train,val}/WNID/N.JPEG`, smooth random pictures of about 500x375."""
    rng, names = np.random.default_rng(0), wnids()[:20]
    for number in range(count):
        small = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        path = folder / "train" / names[number % 20] / f"{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        small.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)
    (folder / "val").symlink_to(folder / "train")


def against_image_folder(folder: Path, rounds: int) -> dict[str, float]:
    """Samples/s of our ImageNet loaders over those of torchvision's ImageFolder, same transforms, by CPU time."""
    to_float = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    transforms = {
        "train": [v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip(), *to_float],
        "val": [v2.Resize(256, antialias=True), v2.CenterCrop(224), *to_float],
    }
    found = {}
    for part, steps in transforms.items():
        dm = ImageNet(root=str(folder), batch_size=50, eval_batch_size=50, val_size=1, workers=0, pin_memory=False)
        mine = dm.train_dataloader() if part == "train" else dm.test_dataloader()
        theirs = datasets.ImageFolder(str(folder / part), v2.Compose(steps))

        def ours(mine: DataLoader = mine) -> None:
            for x, _, _ in mine:
                as_float(x)

        def torchvisions(theirs: datasets.ImageFolder = theirs, part: str = part) -> None:
            for _ in DataLoader(theirs, batch_size=50, shuffle=part == "train"):
                pass

        found[part] = ratios({"ours": ours, "torchvision": torchvisions}, rounds)["torchvision"][0]
    return found


def memory_of_cifar(folder: Path) -> tuple[float, float]:
    """Memory in MB of 60,000 mapped CIFAR images after all were read, and its increase in 20 epochs of 10,000."""
    cached(folder / "x", "cifar", "k", lambda: (torch.zeros(60_000, 3, 32, 32, dtype=torch.uint8), torch.zeros(60_000)))
    before = memory()
    data = TensorImages(*cached(folder / "x", "cifar", "k", lambda: sys.exit("decoded twice")))
    for _ in loader(data):
        pass
    used = memory()
    few = data.select(torch.arange(10_000))
    for _ in range(20):
        for x, _, index in loader(few):  # type: ignore[arg-type]
            as_float(crop_and_flip(x, index, 4, 0, 0))
    return used - before, memory() - used


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=2000, help="JPEGs to generate")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        used, grown = memory_of_cifar(folder)
        write_jpegs(folder / "jpegs", options.images)
        rows = [
            ("memory of 60,000 mapped CIFAR images, MB", used, "<= 200"),
            ("growth over 20 epochs, MB", grown, "about 0"),
            ("MNIST loader / SmallCNN PGD-10 training, samples/s", against_training(options.rounds), ">= 20"),
            ("crops of 32x32 / torchvision's, samples/s", against_torchvision(options.rounds), ">= 5"),
            *(
                (f"ImageNet {part} / torchvision's ImageFolder, samples/s", ratio, ">= 0.95")
                for part, ratio in against_image_folder(folder / "jpegs", max(1, options.rounds // 2)).items()
            ),
        ]
    print("| what | found | target |\n|---|---|---|")
    for what, value, target in rows:
        print(f"| {what} | {value:.2f} | {target} |")
