"""Synthetic copies: a few generated images in the format of each data set, for runs without the data.

`synthetic_copy(write, ...)` is a folder that one of the writers has filled, made once a process and removed at its end.
All images of a class have one colour with noise over it, so that a network can learn them.
"""

import atexit
import csv
import functools
import pickle
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Labels = np.ndarray[Any, np.dtype[np.int64]]
TRAIN, TEST = 64, 24


@functools.cache
def synthetic_copy(write: Callable[..., None], *settings: int | str) -> Path:
    """Temporary folder that `write(folder, *settings)` has filled."""
    outer = Path(tempfile.mkdtemp(prefix="adversarial-lightning-synthetic-"))
    atexit.register(shutil.rmtree, outer, ignore_errors=True)
    write(outer / "data", *settings)
    return outer / "data"


def images(count: int, classes: int, channels: int, size: int, seed: int) -> tuple[Pixels, Labels]:
    """Pixels (count, channels, size, size), and labels (count,) that cycle through all `classes`."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % classes
    colours = np.random.default_rng(0).integers(32, 224, (classes, channels, 1, 1))
    pixels = colours[labels] + rng.integers(-32, 32, (count, channels, size, size))
    return pixels.astype(np.uint8), labels


def idx(folder: Path, name: str) -> None:
    """Write MNIST's or Fashion-MNIST's uncompressed idx files to `folder/name/raw`."""
    raw = folder / name / "raw"
    raw.mkdir(parents=True)
    for seed, (part, count) in enumerate((("train", TRAIN), ("t10k", TEST))):
        pixels, labels = images(count, 10, 1, 28, seed)
        header = struct.pack(">IIII", 0x00000803, count, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        header = struct.pack(">II", 0x00000801, count)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.astype(np.uint8).tobytes())


def cifar10(folder: Path) -> None:
    """Write `cifar-10-batches-py`: five training batches and one of test images, pickled."""
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    _cifar(folder / "cifar-10-batches-py", dict.fromkeys(names, TEST), 10, "labels")
    _pickle(folder / "cifar-10-batches-py" / "batches.meta", {"label_names": [f"class{c}" for c in range(10)]})


def cifar100(folder: Path) -> None:
    """Write `cifar-100-python`: train and test, pickled."""
    _cifar(folder / "cifar-100-python", {"train": 2 * TRAIN, "test": TEST}, 100, "fine_labels")
    _pickle(folder / "cifar-100-python" / "meta", {"fine_label_names": [f"class{c}" for c in range(100)]})


def _cifar(folder: Path, counts: dict[str, int], classes: int, key: str) -> None:
    folder.mkdir(parents=True)
    for seed, (name, count) in enumerate(counts.items()):
        pixels, labels = images(count, classes, 3, 32, seed)
        _pickle(folder / name, {"data": pixels.reshape(count, -1), key: labels.tolist()})


def _pickle(path: Path, content: dict[str, Any]) -> None:
    path.write_bytes(pickle.dumps(content))


def stl10(folder: Path) -> None:
    """Write `stl10_binary`: columns before rows, labels from 1, ten folds of training images."""
    inside = folder / "stl10_binary"
    inside.mkdir(parents=True)
    for seed, (part, count) in enumerate((("train", TRAIN), ("test", TEST))):
        pixels, labels = images(count, 10, 3, 96, seed)
        (inside / f"{part}_X.bin").write_bytes(pixels.transpose(0, 1, 3, 2).tobytes())
        (inside / f"{part}_y.bin").write_bytes((labels + 1).astype(np.uint8).tobytes())
    folds = [" ".join(map(str, range(fold, TRAIN, 2))) for fold in range(10)]
    (inside / "fold_indices.txt").write_text("\n".join(folds) + "\n")
    (inside / "class_names.txt").write_text("\n".join(f"class{c}" for c in range(10)) + "\n")


def tiny_imagenet(folder: Path) -> None:
    """Write `tiny-imagenet-200` with all 200 classes, one training image each; annotated validation images."""
    inside = folder / "tiny-imagenet-200"
    wnids = [f"n{c:08d}" for c in np.random.default_rng(0).permutation(200)]  # the official list is unsorted too
    pixels, labels = images(200, 200, 3, 64, 0)
    for image, label in zip(pixels, labels, strict=True):
        _save(inside / "train" / wnids[label] / "images" / f"{wnids[label]}_0.JPEG", image)
        (inside / "train" / wnids[label] / f"{wnids[label]}_boxes.txt").write_text("")
    pixels, labels = images(TEST, 200, 3, 64, 1)
    lines = []
    for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        _save(inside / "val" / "images" / f"val_{number}.JPEG", image)
        lines.append(f"val_{number}.JPEG\t{wnids[label]}\t0\t0\t63\t63\n")
    (inside / "val" / "val_annotations.txt").write_text("".join(lines))
    (inside / "wnids.txt").write_text("\n".join(wnids) + "\n")
    (inside / "words.txt").write_text("".join(f"{wnid}\tclass {wnid}\n" for wnid in wnids))


def class_folders(folder: Path, parts: dict[str, int], names: list[str], size: int) -> None:
    """Write `PART/CLASS/N.JPEG`: the given number of images for each class of a part, in sizes around `size`."""
    for seed, (part, each) in enumerate(parts.items()):
        pixels, labels = images(each * len(names), len(names), 3, size + 8, seed)
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            _save(folder / part / names[label] / f"{number}.JPEG", image[:, : size + number % 9])


def image_folder(folder: Path, classes: int, size: int) -> None:
    """Write `{train,test}/CLASS/N.JPEG`."""
    each = max(1, TRAIN // classes)
    class_folders(folder, {"train": each, "test": each}, [f"class{c:04d}" for c in range(classes)], size)


def imagenet(folder: Path) -> None:
    """Write `{train,val}/WNID/N.JPEG` for eight of ImageNet's classes."""
    wnids = ["n01440764", "n01443537", "n01484850", "n02123159", "n03445777", "n07930864", "n13133613", "n15075141"]
    class_folders(folder, {"train": 4, "val": 3}, wnids, 40)


def nips2017(folder: Path) -> None:
    """Write `images.csv` with labels from 1, and `images/ID.png`."""
    pixels, labels = images(TEST, 1000, 3, 299, 0)
    with open(_parent(folder / "images.csv"), "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["ImageId", "URL", "TrueLabel", "TargetClass"])
        for number, (image, label) in enumerate(zip(pixels, labels * 37, strict=True)):
            _save(folder / "images" / f"image{number:04d}.png", image)
            rows.writerow([f"image{number:04d}", "", label + 1, 1000 - label])


def _save(path: Path, pixels: Pixels) -> None:
    Image.fromarray(pixels.transpose(1, 2, 0)).save(_parent(path))


def _parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
