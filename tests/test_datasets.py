"""The papers' data sets, on their synthetic copies and on the official layouts: what comes out is what lies there."""

import csv
import hashlib
import http.server
import io
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import LightningModule, Trainer
from torchvision import datasets
from torchvision.transforms import functional as TF
from torchvision.transforms import v2

from adversarial_lightning.datamodules import (
    CIFAR10,
    CIFAR100,
    MNIST,
    NIPS2017,
    STL10,
    FashionMNIST,
    ImageData,
    ImageFolder,
    ImageNet,
    TinyImageNet,
    synthetic_copies,
)
from adversarial_lightning.datamodules import cache as cache_module
from adversarial_lightning.datamodules.augment import crop_and_flip, random_bits
from adversarial_lightning.datamodules.cache import cached, stacked
from adversarial_lightning.datamodules.download import fetch
from adversarial_lightning.datamodules.files import FileImages
from adversarial_lightning.datamodules.imagenet import some_of_each, wnids
from adversarial_lightning.datamodules.images import TensorImages, as_float
from adversarial_lightning.datamodules.samplers import ResumableLoader

pytestmark = [
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]


def made(kind: type, **settings: Any) -> ImageData:
    """The synthetic copy of a data set, in batches of eight."""
    small: dict[str, Any] = {"synthetic": True, "batch_size": 8, "eval_batch_size": 8, "workers": 0, **settings}
    if kind is ImageFolder:
        small = {"root": "nowhere", "num_classes": 4, "image_size": 24, "augment": True, **small}
    if kind is ImageNet:
        small = {"image_size": 32, "resized": 36, **small}
    if kind is NIPS2017:
        small = {"image_size": 48, **small}
    dm: ImageData = kind(**small)
    return dm


# Data set, images in its synthetic copy's training and test part, shape, classes.
TABLE = [
    (MNIST, 64, 24, (1, 28, 28), 10),
    (FashionMNIST, 64, 24, (1, 28, 28), 10),
    (CIFAR10, 120, 24, (3, 32, 32), 10),
    (CIFAR100, 128, 24, (3, 32, 32), 100),
    (STL10, 64, 24, (3, 96, 96), 10),
    (TinyImageNet, 200, 24, (3, 64, 64), 200),
    (ImageNet, 32, 24, (3, 32, 32), 1000),
    (ImageFolder, 64, 64, (3, 24, 24), 4),
]
IDS = [row[0].__name__ for row in TABLE]


@pytest.mark.parametrize("kind, train, test, shape, classes", TABLE, ids=IDS)
def test_synthetic_copies_are_read_like_the_data(kind: type, train: int, test: int, shape: Any, classes: int) -> None:
    dm = made(kind)
    parts = {split: dm.dataset(split) for split in ("train", "val", "test")}
    assert [len(parts[split]) for split in parts] == [train - train // 2, train // 2, test]
    assert dm.image_shape == shape and dm.num_classes == classes
    assert dm.classes is not None and len(set(dm.classes)) == len(dm.classes) == classes
    assert sorted([*parts["train"].indices.tolist(), *parts["val"].indices.tolist()]) == list(range(train))
    for split, data in parts.items():
        x, y, index = data.__getitems__(range(len(data)))
        assert x.shape == (len(data), *shape) and x.dtype == torch.float32 and 0 <= x.min() < x.max() <= 1, split
        assert torch.equal(index, data.indices) and torch.equal(y, data.labels) and 0 <= y.min() <= y.max() < classes
        stored = data.stored().__getitems__([0, -1])
        assert stored[0].dtype == torch.uint8 and torch.equal(as_float(stored[0])[0], x[0]) and stored[2][1] == -1
    again = made(kind).dataset("val")
    assert torch.equal(again.indices, parts["val"].indices)


@pytest.mark.parametrize(
    "kind, published",
    [(CIFAR10, "5046ba34"), (CIFAR100, "5046ba34"), (STL10, "0239e7d3"), (TinyImageNet, "44397a76")],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_held_out_images_never_change(kind: type, published: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default split of the full data set, by its number of training images."""
    count = {STL10: 5000, TinyImageNet: 100_000}.get(kind, 50_000)
    dm = made(kind, synthetic=False)
    monkeypatch.setattr(kind, "source", lambda *_: TensorImages(torch.zeros(count, 1, 1, 1), torch.zeros(count)))
    held = dm.dataset("val").indices
    assert len(held) == dm.val_size and not set(held.tolist()) & set(dm.dataset("train").indices.tolist())
    assert hashlib.sha256(held.numpy().astype("<i8").tobytes()).hexdigest()[:8] == published


class Recorder(LightningModule):
    """Keeps the batches that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: dict[str, list[Any]] = {"train": [], "val": [], "test": []}

    def training_step(self, batch: Any) -> torch.Tensor:
        self.seen["train"].append(batch)
        return self.weight.sum()

    def validation_step(self, batch: Any) -> None:
        self.seen["val"].append(batch)

    def test_step(self, batch: Any) -> None:
        self.seen["test"].append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("kind", [row[0] for row in TABLE], ids=IDS)
def test_only_training_images_are_augmented(kind: type, tmp_path: Path) -> None:
    dm, model = made(kind), Recorder()
    trainer = Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, enable_checkpointing=False, max_epochs=2, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(model, datamodule=dm)
    trainer.test(model, datamodule=dm, verbose=False)
    plain = {}
    for split in ("train", "val", "test"):
        x, _, index = dm.dataset(split).__getitems__(range(len(dm.dataset(split))))
        plain[split] = dict(zip(index.tolist(), x, strict=True))
    for split, batches in model.seen.items():
        same = []
        for x, y, index in batches:
            assert x.dtype == torch.float32 and x.max() <= 1 and len(x) == len(y) == len(index)
            same += [torch.equal(image, plain[split][int(i)]) for image, i in zip(x, index, strict=True)]
        augmented = kind not in (MNIST, FashionMNIST)
        assert sum(same) < 0.2 * len(same) if augmented and split == "train" else all(same), split
    if kind not in (MNIST, FashionMNIST):  # another place in every epoch
        half = len(model.seen["train"]) // 2
        epochs = [{int(i): image for x, _, index in part for i, image in zip(index, x, strict=True)}
                  for part in (model.seen["train"][:half], model.seen["train"][half:])]  # fmt: skip
        assert any(not torch.equal(epochs[0][i], epochs[1][i]) for i in epochs[0])


# ------------------------------------------------------------------------------------------------------ augmentation


def test_crops_and_mirrors_are_torchvisions() -> None:
    x, index = torch.randint(0, 256, (800, 3, 12, 10), dtype=torch.uint8), torch.arange(800) * 7
    found = crop_and_flip(x, index, padding=2, seed=3, epoch=5)
    matches = torch.zeros(800)
    for top in range(5):
        for left in range(5):
            crop = TF.crop(TF.pad(x, [2]), top, left, 12, 10)
            for option in (crop, TF.hflip(crop)):
                equal = (option == found).flatten(1).all(1)
                assert equal.any()  # every place, mirrored or not, is taken
                matches += equal
    assert matches.eq(1).all()
    rows = torch.tensor([40, 3, 17])  # a property of (seed, epoch, index)
    assert torch.equal(crop_and_flip(x[rows], index[rows], 2, 3, 5), found[rows])
    assert not torch.equal(crop_and_flip(x, index, 2, 3, 6), found)
    assert not torch.equal(crop_and_flip(x, index, 2, 4, 5), found)


def test_draws_are_uniform_and_independent_of_neighbours() -> None:
    bits = torch.stack([random_bits(seed, epoch, torch.arange(4096)) for seed in (0, 1) for epoch in (0, 1, 2)])
    assert bits.min() >= 0 and bits.flatten().unique().numel() == bits.numel()
    for shift in (0, 20, 40):
        counts = torch.stack([((row >> shift) % 9).bincount(minlength=9) for row in bits]).float()
        assert (counts - 4096 / 9).abs().max() < 6 * (4096 / 9) ** 0.5
    assert abs(float(torch.corrcoef(((bits >> 20) % 9).float()).triu(1).abs().max())) < 0.06


@pytest.mark.parametrize("workers", [0, 2])
def test_random_parts_follow_the_epoch_also_in_workers(workers: int) -> None:
    dm = made(ImageNet, workers=workers)
    loader = dm.train_dataloader()
    assert isinstance(loader, ResumableLoader)

    def seen(epoch: int) -> dict[int, torch.Tensor]:
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        return {int(i): image for x, _, index in loader for i, image in zip(index, x, strict=True)}

    first, second, again = seen(0), seen(1), seen(0)
    assert all(torch.equal(first[i], again[i]) for i in first)
    assert not any(torch.equal(first[i], second[i]) for i in first)
    if workers:  # the same whoever decodes
        alone = {
            int(i): x for batch in made(ImageNet).train_dataloader() for x, i in zip(batch[0], batch[2], strict=True)
        }
        assert all(torch.equal(alone[i], first[i]) for i in first)
    else:
        loader.sampler.set_epoch(0)  # type: ignore[attr-defined]
        data = dm.dataset("train")
        assert isinstance(data, FileImages)
        data.clock.zero_()
        torch.manual_seed(5)
        state = torch.get_rng_state()
        data.augmented().__getitems__([0, 1])
        assert torch.equal(torch.get_rng_state(), state)


# ------------------------------------------------------------------------------------------------- true formats


def test_cifar_is_torchvisions(tmp_path: Path) -> None:
    for kind, theirs, write in (
        (CIFAR10, datasets.CIFAR10, synthetic_copies.cifar10),
        (CIFAR100, datasets.CIFAR100, synthetic_copies.cifar100),
    ):
        write(tmp_path)
        lists = {name: [(n, None) for n, _ in getattr(theirs, name)] for name in ("train_list", "test_list")}
        unchecked = type("Unchecked", (theirs,), {**lists, "meta": {**theirs.meta, "md5": None}})
        for part in ("train", "test"):
            reference, ours = unchecked(str(tmp_path), train=part == "train"), made(kind).source(part)  # type: ignore[arg-type]
            assert ours.labels.tolist() == reference.targets
            x = ours.__getitems__(range(len(ours)))[0]
            assert torch.equal(x[11], TF.to_tensor(reference[11][0])) and len(ours) == len(reference)


def test_stl10_is_torchvisions_and_folds_name_the_same_images(tmp_path: Path) -> None:
    synthetic_copies.stl10(tmp_path)
    lists = {"train_list": [(n, None) for n, _ in datasets.STL10.train_list[:2]]}
    lists["test_list"] = [(n, None) for n, _ in datasets.STL10.test_list]
    unchecked = type("Unchecked", (datasets.STL10,), lists)
    for fold in (None, 3):
        reference, ours = unchecked(str(tmp_path), split="train", folds=fold), made(STL10, fold=fold).source("train")
        assert ours.labels.tolist() == reference.labels.tolist() and len(ours) == (64 if fold is None else 31)
        assert torch.equal(ours[5][0], TF.to_tensor(reference[5][0]))
        assert int(ours[5][2]) == (5 if fold is None else 13)
    with pytest.raises(ValueError, match="fold=10"):
        STL10(fold=10)


def test_tiny_imagenet_labels_are_torchvisions(tmp_path: Path) -> None:
    synthetic_copies.tiny_imagenet(tmp_path)
    inside = tmp_path / "tiny-imagenet-200"
    wnid = "n00000007"
    shutil.copy(
        inside / "train" / wnid / "images" / f"{wnid}_0.JPEG", inside / "train" / wnid / "images" / f"{wnid}_10.JPEG"
    )
    shutil.copy(
        inside / "train" / wnid / "images" / f"{wnid}_0.JPEG", inside / "train" / wnid / "images" / f"{wnid}_9.JPEG"
    )
    dm = TinyImageNet(root=str(tmp_path), val_size=5)
    classes = datasets.ImageFolder(str(inside / "train")).class_to_idx
    train, test = dm.source("train"), dm.source("test")
    assert train.labels[:200].tolist() == list(range(200))  # in turns: 0 of all, then 9, then 10
    assert train.labels[200:].tolist() == [classes[wnid]] * 2
    annotations = dict(
        line.split("\t")[:2] for line in (inside / "val" / "val_annotations.txt").read_text().splitlines()
    )
    for x, y, index in test:
        assert int(y) == classes[annotations[f"val_{int(index)}.JPEG"]]
        with Image.open(inside / "val" / "images" / f"val_{int(index)}.JPEG") as image:
            assert torch.equal(x, TF.to_tensor(image.convert("RGB")))
    direct = TinyImageNet(root=str(inside), val_size=5)  # the folder itself does too
    assert len(direct.source("test")) == len(test)


def test_imagenet_labels_are_official_whatever_is_there(tmp_path: Path) -> None:
    official = wnids()
    assert len(official) == 1000 and official == sorted(official) and official[0] == "n01440764"
    synthetic_copies.class_folders(tmp_path, {"val": 2}, [official[998], official[7]], 40)
    dm = ImageNet(root=str(tmp_path), image_size=32, resized=36, workers=0)
    test = dm.dataset("test")
    assert test.labels.tolist() == [7, 998, 7, 998]
    with Image.open(sorted((tmp_path / "val" / official[998]).iterdir())[0]) as image:
        reference = v2.Compose([v2.Resize(36), v2.CenterCrop(32)])(image.convert("RGB"))
    assert torch.equal(test[1][0], TF.to_tensor(reference))
    with pytest.raises(FileNotFoundError, match=r"train images are missing.*ILSVRC2012_img_train\.tar"):
        dm.dataset("train")
    (tmp_path / "val" / "cats").mkdir()
    with pytest.raises(ValueError, match="cats is no class of ImageNet"):
        ImageNet(root=str(tmp_path)).dataset("test")


def test_imagenets_official_archives_are_unpacked_by_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scipy.io import savemat

    two = wnids()[:2]
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    rows = [(2, two[0], "tench", "", 0), (1, two[1], "goldfish", "", 0), (3, "n00000000", "fish", "", 2)]
    devkit = tmp_path / "ILSVRC2012_devkit_t12" / "data"
    devkit.mkdir(parents=True)
    savemat(devkit / "meta.mat", {"synsets": np.array(rows, dtype=fields)})
    (devkit / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n2\n")
    root = tmp_path / "root"
    root.mkdir()
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        tar.add(devkit.parent, arcname="ILSVRC2012_devkit_t12")
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as tar:
        for number in (1, 2, 3):
            buffer = io.BytesIO()
            Image.new("RGB", (40, 40), (80 * number, 0, 0)).save(buffer, "JPEG")
            member = tarfile.TarInfo(f"ILSVRC2012_val_{number:08d}.JPEG")
            member.size = buffer.tell()
            tar.addfile(member, io.BytesIO(buffer.getvalue()))
    monkeypatch.setattr("torchvision.datasets.imagenet.ARCHIVE_META",
                        {k: (v[0], None) for k, v in datasets.imagenet.ARCHIVE_META.items()})  # fmt: skip
    test = ImageNet(root=str(root), image_size=32, resized=32, workers=0).dataset("test")
    assert test.labels.tolist() == [0, 1, 0]  # in turns; images 2 and 3 are tench, 1 is goldfish
    assert [round(float(x[0].mean()) * 255 / 80) for x, _, _ in test] == [2, 1, 3]


def test_imagenet_subsets(tmp_path: Path) -> None:
    labels = torch.arange(50) % 7
    chosen = some_of_each(labels, 2, seed=0)
    assert labels[chosen].bincount().tolist() == [2] * 7 and torch.equal(chosen, chosen.sort().values)
    assert torch.equal(chosen, some_of_each(labels, 2, 0)) and not torch.equal(chosen, some_of_each(labels, 2, 1))
    assert len(some_of_each(torch.arange(50_000) % 1000, 2, 0)) == 2000
    assert len(some_of_each(labels, 100, 0)) == 50
    dm = made(ImageNet, test_per_class=1)
    assert len(dm.dataset("test")) == 8 and dm.dataset("test").labels.unique().numel() == 8
    assert len(dm.dataset("train")) == 16  # a choice of test images
    listing = tmp_path / "indices.txt"
    listing.write_text("5\n3\n20\n")
    assert made(ImageNet, subset=str(listing)).dataset("test").indices.tolist() == [3, 5, 20]
    for content in ("24\n", "-1\n", "", "x\n"):
        listing.write_text(content)
        with pytest.raises(ValueError, match=r"indices\.txt (must list|is no list)"):
            made(ImageNet, subset=str(listing)).dataset("test")
    with pytest.raises(ValueError, match="both choose"):
        made(ImageNet, subset="a", test_per_class=1)


@pytest.mark.long
def test_nips2017_counts_classes_from_one(tmp_path: Path) -> None:
    synthetic_copies.nips2017(tmp_path)
    test = made(NIPS2017).dataset("test")
    with open(tmp_path / "images.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["TrueLabel"] == "1" and test.labels.tolist() == [int(row["TrueLabel"]) - 1 for row in rows]
    assert test[3][0].shape == (3, 48, 48) and NIPS2017(synthetic=True).dataset("test")[0][0].shape == (3, 299, 299)
    (tmp_path / "images.csv").rename(tmp_path / "dev_dataset.csv")
    dm = NIPS2017(root=str(tmp_path))
    assert len(dm.dataset("test")) == 24
    with pytest.raises(ValueError, match="no training images"):
        dm.dataset("train")
    table = (tmp_path / "dev_dataset.csv").read_text()
    (tmp_path / "images.csv").write_text(table.replace("image0002,,75,", "image0002,,0,"))
    with pytest.raises(ValueError, match=r"images\.csv, line 4: .* 1 \.\. 1000"):
        NIPS2017(root=str(tmp_path)).dataset("test")
    (tmp_path / "images.csv").unlink()
    (tmp_path / "images" / "image0002.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 images of .*image0002\.png"):
        NIPS2017(root=str(tmp_path)).dataset("test")


# -------------------------------------------------------------------------------------------------------- the cache


def test_the_cache_is_the_decoded_images_bit_for_bit(tmp_path: Path) -> None:
    synthetic_copies.image_folder(tmp_path / "data", 4, 24)
    decoded = [
        ImageFolder(str(tmp_path / "data"), image_size=24, val_size=5).source(part) for part in ("train", "test")
    ]
    for _ in range(2):  # written, then mapped
        mapped = [
            ImageFolder(str(tmp_path / "data"), image_size=24, cache=True).source(part) for part in ("train", "test")
        ]
        for a, b in zip(decoded, mapped, strict=True):
            assert isinstance(b, TensorImages) and b.pixels.dtype == torch.uint8
            for one, other in zip(a.__getitems__(range(len(a))), b.__getitems__(range(len(b))), strict=True):
                assert torch.equal(one, other)
    files = sorted(path.name for path in (tmp_path / "data").iterdir() if path.suffix == ".safetensors")
    assert len(files) == 2
    target = next((tmp_path / "data" / "train" / "class0000").iterdir())
    Image.new("RGB", (24, 24), (1, 2, 3)).save(target)  # a change of any file is seen
    changed = ImageFolder(str(tmp_path / "data"), image_size=24, cache=True).source("train")
    assert not torch.equal(changed.__getitems__(range(64))[0], mapped[0].__getitems__(range(64))[0])


def test_a_cut_cache_is_made_anew_and_several_processes_decode_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def decode() -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(1)
        return torch.arange(24, dtype=torch.uint8).view(2, 3, 2, 2), torch.tensor([3, 4])

    def ask() -> None:
        pixels, labels = cached(tmp_path / "x", "name", "key", decode)
        assert pixels.flatten().tolist() == list(range(24)) and labels.tolist() == [3, 4]

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    path = tmp_path / ".name.key.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    ask()
    ask()
    assert len(calls) == 2 and not list(tmp_path.glob("*.part*"))


def test_a_cache_that_cannot_be_written_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    synthetic_copies.image_folder(tmp_path / "data", 4, 24)
    closed: list[Path] = []
    real = cache_module.tempfile.TemporaryFile

    def refuse(dir: Path) -> Any:
        if dir in closed:
            raise PermissionError(13, "Permission denied")  # root may write anywhere, so no real folder would refuse
        return real(dir=dir)

    monkeypatch.setattr(cache_module.tempfile, "TemporaryFile", refuse)
    closed.append(tmp_path / "data")
    dm = ImageFolder(str(tmp_path / "data"), image_size=24, cache=True, val_size=5)
    dm.dataset("train")
    assert list((tmp_path / "user" / "adversarial-lightning").glob(".data-train.*.safetensors"))
    closed.append(tmp_path / "user" / "adversarial-lightning")
    with pytest.raises(ValueError, match=r"neither to .*data \(Permission denied\) nor to .*XDG_CACHE_HOME"):
        dm.dataset("test")
    monkeypatch.setattr("adversarial_lightning.datamodules.cache.shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    closed.clear()
    with pytest.raises(ValueError, match="has 0 MB left"):
        dm.dataset("test")


@pytest.mark.long
def test_pixels_stay_out_of_memory_until_read(tmp_path: Path) -> None:
    """50,000 mapped CIFAR images: mapped, not read; batches of all epochs leave nothing behind."""

    def memory() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    if not Path("/proc/self/statm").exists():
        pytest.skip("no /proc here")
    cached(tmp_path / "x", "big", "k", lambda: (torch.zeros(50_000, 3, 32, 32, dtype=torch.uint8), torch.zeros(50_000)))
    before = memory()
    pixels, labels = cached(tmp_path / "x", "big", "k", lambda: pytest.fail("decoded twice"))
    data = TensorImages(pixels, labels)
    assert memory() - before < 20e6
    for start in range(0, 50_000, 500):
        data.__getitems__(range(start, start + 500))
    used = memory() - before
    assert used < 200e6
    for _ in range(2):
        for start in range(0, 50_000, 1000):
            data.__getitems__(range(start, start + 1000))
    assert memory() - before < used + 60e6  # two more epochs would leave 300 MB


def test_stacking_fills_every_row() -> None:
    found = stacked(600, lambda numbers: (numbers % 251).to(torch.uint8).view(-1, 1, 1, 1), (1, 1, 1))
    assert found.flatten().tolist() == [n % 251 for n in range(600)]


# ------------------------------------------------------------------------------------------------------- bad input


def damage(root: Path, what: str) -> None:
    inside = root / "tiny-imagenet-200"
    wnid = "n00000007"
    if what == "class":
        shutil.rmtree(inside / "train" / wnid)
    elif what == "empty":
        (inside / "train" / wnid / "images" / f"{wnid}_0.JPEG").unlink()
    elif what == "extra":
        (inside / "train" / wnid / "images" / "Thumbs.db").write_bytes(b"x")
    elif what == "corrupt":
        (inside / "train" / wnid / "images" / f"{wnid}_0.JPEG").write_bytes(b"no image")
    elif what == "annotation":
        (inside / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn99999999\t0\t0\t1\t1\n")
    elif what == "image":
        (inside / "val" / "images" / "val_3.JPEG").unlink()
    elif what == "wnids":
        (inside / "wnids.txt").unlink()


@pytest.mark.parametrize(
    "what, message",
    [
        ("class", r"n00000007/images is missing: all 200 classes"),
        ("empty", r"n00000007/images holds no images"),
        ("extra", None),
        ("corrupt", r"n00000007_0\.JPEG is not a readable image"),
        ("annotation", r"val_annotations\.txt, line 1: expected val_N\.JPEG"),
        ("image", r"there is no .*val_3\.JPEG"),
        ("wnids", r"there is no .*wnids\.txt.*tiny-imagenet-200\.zip"),
    ],
)
def test_damaged_tiny_imagenets_name_the_file(what: str, message: str | None, tmp_path: Path) -> None:
    synthetic_copies.tiny_imagenet(tmp_path)
    damage(tmp_path, what)
    dm = TinyImageNet(root=str(tmp_path))
    if message is None:
        assert len(dm.source("train")) == 200
        return
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        dm.prepare_data()
    assert "\n" not in str(caught.value)


def test_missing_and_foreign_cifar(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"CIFAR10 is missing: there is no .*download=true.*cifar-10-python"
    ) as e:
        CIFAR10(root=str(tmp_path)).dataset("test")
    assert str(tmp_path) in str(e.value)
    synthetic_copies.cifar10(tmp_path)
    with pytest.raises(ValueError, match=r"batches\.meta is damaged, or not the published file of CIFAR10 \(md5"):
        CIFAR10(root=str(tmp_path)).dataset("test")
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no .*data_batch_3"):
        CIFAR10(root=str(tmp_path)).dataset("train")
    shutil.rmtree(tmp_path / "cifar-10-batches-py")
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"cifar-10-python\.tar\.gz is not a whole tar archive"):
        CIFAR10(root=str(tmp_path)).dataset("train")


def test_archives_packed_as_published_are_read(tmp_path: Path) -> None:
    synthetic_copies.tiny_imagenet(tmp_path / "folder")
    with zipfile.ZipFile(tmp_path / "tiny-imagenet-200.zip", "w") as packed:
        for path in sorted((tmp_path / "folder").rglob("*")):
            packed.write(path, path.relative_to(tmp_path / "folder"))
    for root in (tmp_path, tmp_path / "tiny-imagenet-200.zip"):  # in the folder, or named
        assert len(TinyImageNet(root=str(root)).source("train")) == 200
    (tmp_path / "cut.zip").write_bytes((tmp_path / "tiny-imagenet-200.zip").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cut\.zip is not a whole zip archive"):
        TinyImageNet(root=str(tmp_path / "cut.zip")).source("train")


# ----------------------------------------------------------------------------------------------------- downloads

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """Serves CONTENT: /good all of it, /cut half of it, /page an error page; remembers the addresses asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body = b"<html>not here</html>" if self.path == "/page" else CONTENT
            self.send_response(404 if self.path == "/none" else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if self.path == "/cut" else body)

        def log_message(self, *_: Any) -> None:
            pass

    here = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=here.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{here.server_address[1]}", asked
    here.shutdown()
    here.server_close()
    thread.join()


@pytest.mark.long
def test_downloads_check_and_try_mirrors(server: tuple[str, list[str]], tmp_path: Path) -> None:
    address, asked = server
    md5 = hashlib.md5(CONTENT).hexdigest()
    target = tmp_path / "data" / "file.bin"
    fetch([f"{address}/good"], target, md5)
    assert target.read_bytes() == CONTENT and asked == ["/good"]
    fetch(["http://127.0.0.1:1/never"], target, md5)  # it is there
    target.unlink()
    fetch([f"{address}/none", f"{address}/page", f"{address}/cut", f"{address}/good"], target, md5)
    assert target.read_bytes() == CONTENT
    target.unlink()
    with pytest.raises(FileNotFoundError, match=r"file\.bin could not be downloaded: .*place it at") as caught:
        fetch(["http://127.0.0.1:1/never", f"{address}/cut", f"{address}/page"], target, md5)
    says = str(caught.value)
    assert md5 in says and "/never (" in says and "/cut (" in says and "not the published one" in says
    assert "\n" not in says
    assert [path.name for path in target.parent.iterdir()] == [".file.bin.lock"]  # nothing half is left


@pytest.mark.long
def test_a_data_set_fetches_its_archive(
    server: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CIFAR10, "urls", (f"{server[0]}/page",))
    with pytest.raises(FileNotFoundError, match=r"cifar-10-python\.tar\.gz could not be downloaded.*not the published"):
        CIFAR10(root=str(tmp_path), download=True).prepare_data()
