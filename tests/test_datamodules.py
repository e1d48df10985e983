"""The data sets: every image under its number, every process its share, and the same order after a resume."""

import hashlib
import inspect
import io
import shutil
import struct
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from adversarial_lightning.datamodules import MNIST, Digits, ImageData, ImageFolder
from adversarial_lightning.datamodules import archive as archive_module
from adversarial_lightning.datamodules.images import TensorImages
from adversarial_lightning.datamodules.samplers import EpochShuffle, ResumableLoader, Shard

pytestmark = [
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning 2.6 on torch >= 2.13
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),  # Python >= 3.12, loaders with workers
]

# ------------------------------------------------------------------------------------------------ small data on disk


def write_mnist(root: Path, train: int = 40, test: int = 12, label: int | None = None) -> Path:
    """idx files with random pixels; image i starts with the pixel i, so that a test knows it again."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name, count in (("train", train), ("t10k", test)):
        pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        pixels[:, 0, 0] = np.arange(count)
        pixels[:, 0, 1] = 255
        labels = np.arange(count, dtype=np.uint8) % 10 if label is None else np.full(count, label, dtype=np.uint8)
        header = struct.pack(">IIII", 0x00000803, count, 28, 28)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x00000801, count) + labels.tobytes())
    return root


def write_folder(root: Path, parts: tuple[str, ...] = ("train", "test"), classes: int = 3, each: int = 5) -> Path:
    """Class folders of PNG files in several sizes; image k of class c in part p has one colour of its own."""
    for p, part in enumerate(parts):
        for c in range(classes):
            folder = root / part / f"class{c}"
            folder.mkdir(parents=True)
            for k in range(each):
                Image.new("RGB", (20 + k, 30 - k), (80 * c, 20 * k, 100 * p)).save(folder / f"{k}.png")
    return root


def pack(folder: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w:gz" if archive.name.endswith("gz") else "w") as tar:
        tar.add(folder, arcname="outer")
    return archive


def small(kind: str, tmp_path: Path, **settings: int) -> ImageData:
    settings = {"val_size": 5, "batch_size": 8, "eval_batch_size": 7, **settings}
    if kind == "digits":
        return Digits(**settings)
    if kind == "mnist":
        return MNIST(str(write_mnist(tmp_path)), **settings)
    return ImageFolder(str(write_folder(tmp_path / "folder")), image_size=16, **settings)


KINDS = ("digits", "mnist", "folder")

# --------------------------------------------------------------------------------------------------- items and splits


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_images_labels_and_indices(kind: str, tmp_path: Path) -> None:
    dm = small(kind, tmp_path)
    for split in ("train", "val", "test"):
        data = dm.dataset(split)
        x, y, index = data.__getitems__(range(len(data)))
        assert x.shape == (len(data), *dm.image_shape) and x.dtype == torch.float32
        assert x.min() >= 0 and 0.5 < x.max() <= 1
        assert y.dtype == index.dtype == torch.int64 and y.max() < dm.num_classes
        assert torch.equal(index, data.indices) and torch.equal(y, data.labels)
        for position in (0, 3, len(data) - 1):
            one = data[position]
            assert torch.equal(one[0], x[position]) and one[1] == y[position] and one[2] == index[position]


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_names_the_same_image_whatever_the_split(kind: str, tmp_path: Path) -> None:
    dm = small(kind, tmp_path)
    again = type(dm)(**{**arguments(dm), "split_seed": 1, "val_size": 4})
    known = {int(i): (x, y) for x, y, i in dm.dataset("train")}
    common = 0
    for split in ("train", "val"):
        for x, y, index in again.dataset(split):
            if int(index) in known:
                common += 1
                assert torch.equal(x, known[int(index)][0]) and y == known[int(index)][1]
    assert common == len(known)
    assert torch.equal(dm.dataset("test").indices, again.dataset("test").indices)


def arguments(dm: ImageData) -> dict[str, object]:
    return {name: getattr(dm, name) for name in inspect.signature(type(dm)).parameters}


@pytest.mark.parametrize("kind", KINDS)
def test_arguments_stay_attributes_of_plain_values(kind: str, tmp_path: Path) -> None:
    for value in arguments(small(kind, tmp_path, train_limit=9, test_limit=3)).values():
        assert value is None or type(value) in (str, int, float, bool)


def test_mnist_indices_are_places_in_the_files(tmp_path: Path) -> None:
    dm = small("mnist", tmp_path)
    for split in ("train", "val", "test"):
        x, y, index = dm.dataset(split).__getitems__(range(len(dm.dataset(split))))
        assert torch.equal((x[:, 0, 0, 0] * 255).round().long(), index)
        assert torch.equal(index % 10, y)
        assert x[:, 0, 0, 1].eq(1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_images_are_disjoint_seeded_and_sorted(kind: str, tmp_path: Path) -> None:
    dm = small(kind, tmp_path)
    train, val = dm.dataset("train").indices, dm.dataset("val").indices
    assert len(val) == 5 and not set(train.tolist()) & set(val.tolist())
    assert torch.equal(val, val.sort().values) and torch.equal(train, train.sort().values)
    other = type(dm)(**{**arguments(dm), "split_seed": 1}).dataset("val").indices
    same = type(dm)(**arguments(dm)).dataset("val").indices
    assert torch.equal(val, same) and not torch.equal(val, other)
    if kind == "digits":  # one source for all splits
        test = dm.dataset("test").indices
        assert sorted([*train.tolist(), *val.tolist(), *test.tolist()]) == list(range(1797))


def test_the_digits_split_never_changes() -> None:
    dm = Digits()
    assert [len(dm.dataset(split)) for split in ("train", "val", "test")] == [1237, 200, 360]
    hashes = [
        hashlib.sha256(dm.dataset(split).indices.numpy().astype("<i8").tobytes()).hexdigest()[:12]
        for split in ("train", "val", "test")
    ]
    assert hashes == ["e8f11e2a7e2b", "0d3dfc5d4975", "5c6e544552c3"]


def test_digits_are_scikit_learns_images() -> None:
    from sklearn.datasets import load_digits

    x, y, index = Digits(size=8).dataset("test").__getitems__(range(360))
    assert np.array_equal(x[:, 0].numpy() * 16, load_digits().images[index.numpy()])
    assert np.array_equal(y.numpy(), load_digits().target[index.numpy()])


@pytest.mark.parametrize("kind", KINDS)
def test_limits_take_a_random_nested_subset(kind: str, tmp_path: Path) -> None:
    dm = small(kind, tmp_path)
    few, more = (
        type(dm)(**{**arguments(dm), "train_limit": n + 2, "test_limit": n, "split_seed": seed})
        for n, seed in ((4, 0), (7, 0))
    )
    for split, count in (("train", 6), ("test", 4)):
        whole, chosen, larger = (d.dataset(split).indices.tolist() for d in (dm, few, more))
        assert len(chosen) == count and set(chosen) < set(larger) < set(whole) and chosen == sorted(chosen)
        assert chosen != whole[:count]  # the order of a data set is not random
    assert few.dataset("test").drawn_from == len(dm.dataset("test")) and dm.dataset("test").drawn_from is None
    assert torch.equal(few.dataset("val").indices, dm.dataset("val").indices)


@pytest.mark.parametrize("kind", KINDS)
def test_the_dummy_is_the_first_image_without_a_number(kind: str, tmp_path: Path) -> None:
    data = small(kind, tmp_path).dataset("test")
    x, y, index = data.__getitems__([2, -1])
    assert torch.equal(x[1], data[0][0]) and y[1] == data[0][1] and index.tolist() == [int(data.indices[2]), -1]
    assert int(data[-1][2]) == -1
    for outside in (-2, len(data)):
        with pytest.raises(IndexError, match="of a data set of"):
            data[outside]


# ---------------------------------------------------------------------------------------------------- orders and ranks


@pytest.mark.parametrize("n, world", [(1, 1), (1, 2), (7, 1), (7, 2), (8, 2), (101, 3), (2, 5), (5, 5)])
def test_shards_cover_every_image_once(n: int, world: int) -> None:
    shards = [list(Shard(range(n), rank, world)) for rank in range(world)]
    assert all(len(shard) == len(Shard(range(n), rank, world)) >= 1 for rank, shard in enumerate(shards))
    assert sorted(p for shard in shards for p in shard if p >= 0) == list(range(n))
    assert sum(p < 0 for shard in shards for p in shard) == max(0, world - n)


@pytest.mark.parametrize("n", [1, 2, 10, 12])
def test_all_worlds_share_one_permutation(n: int) -> None:
    def dealt(world: int, epoch: int, seed: int = 0) -> list[int]:
        ranks = [EpochShuffle(range(n), rank, world, seed) for rank in range(world)]
        for rank in ranks:
            rank.set_epoch(epoch)
        hands = [list(rank) for rank in ranks]
        assert len({len(hand) for hand in hands}) == 1 and len(hands[0]) == len(ranks[0])
        return [position for step in zip(*hands, strict=True) for position in step]

    for epoch in range(3):
        alone = dealt(1, epoch)
        assert sorted(alone) == list(range(n))
        for world in (2, 3):
            together = dealt(world, epoch)
            assert together[:n] == alone
            assert together[n:] == [alone[i % n] for i in range(len(together) - n)]
    if n > 2:
        orders = {tuple(dealt(1, epoch, seed)) for epoch in range(3) for seed in range(3)}
        assert len(orders) == 9  # (seed 0, epoch 1) is not (seed 1, epoch 0)


def test_the_order_is_keyed_by_the_global_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dm = small("mnist", tmp_path)

    def seen(seed: str | None) -> list[int]:
        monkeypatch.setenv("PL_GLOBAL_SEED", seed) if seed else monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
        return [i for _, _, index in dm.train_dataloader() for i in index.tolist()]

    torch.manual_seed(3)
    assert seen("7") == seen("7") != seen("8")
    assert seen(None) == seen("0")
    assert len(seen("7")) == 35  # the last, partial batch included


def test_loaders_take_rank_and_world_from_the_trainer(tmp_path: Path) -> None:
    seen: dict[str, list[int]] = {"train": [], "test": []}
    for rank in range(2):
        dm = small("mnist", tmp_path, test_limit=1)
        dm.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]
        seen["test"] += [i for _, _, index in dm.test_dataloader() for i in index.tolist()]
        loader = dm.train_dataloader()
        loader.trainer = None  # type: ignore[attr-defined]
        seen["train"] += [i for _, _, index in loader for i in index.tolist()]
    assert seen["test"] == [int(dm.dataset("test").indices[0]), -1]
    assert len(seen["train"]) == 36 and set(seen["train"]) == set(dm.dataset("train").indices.tolist())


# ------------------------------------------------------------------------------------------------------ under a Trainer


class Recorder(LightningModule):
    """A linear classifier that writes down the indices it meets, and can fail in the middle of a step."""

    def __init__(self, pixels: int, fail_at: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(pixels, 10)
        self.fail_at = fail_at
        self.seen: dict[str, list[list[int]]] = {"train": [], "val": [], "test": []}

    def loss(self, batch: list[torch.Tensor], split: str) -> torch.Tensor:
        x, y, index = batch
        if split == "train" and self.fail_at == len(self.seen["train"]):
            raise KeyError("power cut")
        self.seen[split].append(index.tolist())
        return torch.nn.functional.cross_entropy(self.layer(x.flatten(1)), y)

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        return self.loss(batch, "train")

    def validation_step(self, batch: list[torch.Tensor]) -> None:
        self.loss(batch, "val")

    def test_step(self, batch: list[torch.Tensor]) -> None:
        self.loss(batch, "test")

    def predict_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        return batch[2]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(tmp_path: Path, *callbacks: Callback, **settings: object) -> Trainer:
    return Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, callbacks=list(callbacks), enable_checkpointing=False, **settings,
    )  # fmt: skip


def flat(batches: list[list[int]]) -> list[int]:
    return [index for batch in batches for index in batch]


@pytest.mark.parametrize("kind", KINDS)
def test_every_loop_of_a_trainer_runs(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a machine of many cores, where Lightning would advise more workers.
    monkeypatch.setattr("pytorch_lightning.trainer.connectors.data_connector.suggested_max_num_workers", lambda _: 8)
    dm = small(kind, tmp_path, train_limit=20)
    model = Recorder(int(np.prod(dm.image_shape)))
    run = trainer(tmp_path, max_epochs=2, num_sanity_val_steps=0)
    run.fit(model, datamodule=dm)
    run.test(model, datamodule=dm, verbose=False)
    predicted = torch.cat(run.predict(model, datamodule=dm))  # type: ignore[arg-type]
    steps = len(model.seen["train"]) // 2
    epochs = [flat(model.seen["train"][i : i + steps]) for i in (0, steps)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == dm.dataset("train").indices.tolist()
    assert epochs[0] != epochs[1]
    assert flat(model.seen["val"]) == 2 * dm.dataset("val").indices.tolist()
    assert flat(model.seen["test"]) == predicted.tolist() == dm.dataset("test").indices.tolist()


class SaveEverywhere(Callback):
    """A checkpoint at every hook where Lightning's callbacks write one; has no state, so any run resumes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        trainer.save_checkpoint(self.folder / f"batch{trainer.global_step}.ckpt")

    def on_validation_end(self, trainer: Trainer, *_: object) -> None:
        trainer.save_checkpoint(self.folder / f"validation{trainer.global_step}.ckpt")

    def on_train_epoch_end(self, trainer: Trainer, *_: object) -> None:
        trainer.save_checkpoint(self.folder / f"epoch{trainer.global_step}.ckpt")

    def on_exception(self, trainer: Trainer, *_: object) -> None:
        trainer.save_checkpoint(self.folder / "failed.ckpt")


@pytest.mark.long
@pytest.mark.parametrize(
    "workers, checkpoints",
    [
        (0, ["batch2", "batch5", "validation5", "epoch5", "batch7", "batch10", "validation10", "epoch10"]),
        (2, ["batch7"]),
    ],
)
def test_a_resumed_run_sees_what_the_whole_run_saw(workers: int, checkpoints: list[str], tmp_path: Path) -> None:
    """From a checkpoint inside an epoch, at each of its ends, and from inside a step; 5 steps an epoch."""

    def run(folder: str, checkpoint: Path | None = None, fail_at: int | None = None) -> Recorder:
        dm = small("mnist", tmp_path, workers=workers)
        model = Recorder(28 * 28, fail_at)
        job = trainer(tmp_path, SaveEverywhere(tmp_path / folder), max_epochs=3, num_sanity_val_steps=0)
        if fail_at is None:
            job.fit(model, datamodule=dm, ckpt_path=checkpoint, weights_only=True)
        else:
            with pytest.raises(KeyError, match="power cut"):
                job.fit(model, datamodule=dm)
        return model

    whole = run("whole")
    assert [len(batch) for batch in whole.seen["train"]] == 3 * [8, 8, 8, 8, 3]
    for name in checkpoints:
        resumed = run("resumed", tmp_path / "whole" / f"{name}.ckpt")
        steps = int("".join(filter(str.isdigit, name)))
        assert resumed.seen["train"] == whole.seen["train"][steps:], name
        assert torch.equal(resumed.layer.weight, whole.layer.weight), name
    interrupted = run("interrupted", fail_at=8)
    resumed = run("resumed", tmp_path / "interrupted" / "failed.ckpt")
    assert interrupted.seen["train"] + resumed.seen["train"] == whole.seen["train"]
    again = run("resumed", tmp_path / "resumed" / "batch9.ckpt")  # a run resumed twice
    assert again.seen["train"] == whole.seen["train"][9:]


def test_an_epoch_cut_short_is_not_resumed(tmp_path: Path) -> None:
    """With limit_train_batches an epoch ends before the loader does; the next one starts at its beginning."""

    def run(checkpoint: Path | None) -> Recorder:
        model = Recorder(28 * 28)
        settings = {"max_epochs": 3, "limit_train_batches": 2, "num_sanity_val_steps": 0}
        job = trainer(tmp_path, SaveEverywhere(tmp_path), **settings)
        job.fit(model, datamodule=small("mnist", tmp_path), ckpt_path=checkpoint, weights_only=True)
        return model

    whole = run(None)
    assert run(tmp_path / "epoch2.ckpt").seen["train"] == whole.seen["train"][2:]


def test_a_finished_epoch_is_not_skipped_again(tmp_path: Path) -> None:
    dm = small("mnist", tmp_path)
    first, second = dm.train_dataloader(), dm.train_dataloader()
    assert isinstance(first, ResumableLoader) and isinstance(second, ResumableLoader)
    seen = [index.tolist() for _, _, index in first]
    assert [index.tolist() for _, _, index in first] == seen  # iterating again without an epoch starts again
    state = {"epoch": 0, "batches": 2, "global_batch": 8}
    second.load_state_dict(state)
    assert second.state_dict() == state
    assert [index.tolist() for _, _, index in second] == seen[2:]
    assert second.state_dict() == {"epoch": 0, "batches": 5, "global_batch": 8}
    assert [index.tolist() for _, _, index in second] == seen
    second.load_state_dict(state)
    second.sampler.set_epoch(1)  # type: ignore[attr-defined]
    assert sum(len(index) for _, _, index in second) == 35
    second.load_state_dict({**state, "epoch": 1, "global_batch": 16})
    with pytest.warns(UserWarning, match="batch_size x processes"):
        next(iter(second))


# -------------------------------------------------------------------------------------------------------- image folders


def contents(dm: ImageData) -> list[torch.Tensor]:
    splits = [dm.dataset(split) for split in ("train", "val", "test")]
    return [part for data in splits for part in data.__getitems__(range(len(data)))]


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz"])
def test_an_archive_is_its_folder(suffix: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder")
    archive = pack(folder, tmp_path / f"images{suffix}")
    expected = contents(ImageFolder(str(folder), image_size=16, val_size=4))
    for _ in range(2):
        found = contents(ImageFolder(str(archive), image_size=16, val_size=4))
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    places = sorted(path.name for path in tmp_path.iterdir() if path != folder and path != archive)
    assert len(places) == 1 and places[0].startswith(archive.name)  # unpacked once, nothing temporary left
    archive.unlink()
    pack(write_folder(tmp_path / "other", classes=4), archive)
    assert ImageFolder(str(archive)).num_classes == 4  # a replaced archive is unpacked anew


def test_an_archive_in_a_read_only_place_goes_to_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    archive = pack(write_folder(tmp_path / "folder"), tmp_path / "images.tar")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make = tempfile.mkdtemp

    def refuse(prefix: str, dir: Path) -> str:
        if dir == tmp_path:
            raise PermissionError("read-only")  # root may write anywhere, so no real folder would refuse
        return make(prefix=prefix, dir=dir)

    monkeypatch.setattr("adversarial_lightning.datamodules.archive.tempfile.mkdtemp", refuse)
    assert ImageFolder(str(archive)).train_root.is_relative_to(tmp_path / "cache")


def test_files_are_numbered_in_turns_and_shown_right(tmp_path: Path) -> None:
    dm = ImageFolder(str(write_folder(tmp_path)), image_size=16, val_size=1)
    test = dm.dataset("test")
    assert test.labels.tolist() == 5 * [0, 1, 2]
    for x, y, index in test:
        colour = torch.tensor([80 * int(y), 20 * (int(index) // 3), 100]).view(3, 1, 1) / 255
        assert x.shape == (3, 16, 16) and torch.allclose(x, colour.expand_as(x))
    grey = ImageFolder(str(tmp_path), image_size=10, channels=1, val_size=1)
    assert grey.dataset("test")[3][0].shape == grey.image_shape == (1, 10, 10)


def test_resizing_averages_and_crops_the_centre(tmp_path: Path) -> None:
    """A fine checkerboard becomes grey, and the two ends of a long image are cut off."""
    pixels = np.indices((64, 192)).sum(0) % 2 * 255
    pixels[:, :64], pixels[:, 128:] = 0, 255
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for k in range(3):
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / name / f"{k}.png")
    x = ImageFolder(str(tmp_path), image_size=8, channels=1, val_size=1).dataset("test")[0][0]
    assert (x[:, :, 1:-1] - 0.5).abs().max() < 0.02


@pytest.mark.parametrize(
    "parts, test_part",
    [
        (("train", "test"), "test"),
        (("train", "val"), "val"),
        (("train", "val", "test"), "test"),
        (("val",), None),
        (("",), None),
        (("one",), None),
    ],
)
def test_layouts(parts: tuple[str, ...], test_part: str | None, tmp_path: Path) -> None:
    (tmp_path / "images" / ".hidden").mkdir(parents=True)
    dm = ImageFolder(str(write_folder(tmp_path / "images", parts)), image_size=8, val_size=2)
    assert dm.num_classes == 3 and dm.classes == ("class0", "class1", "class2")
    train, val, test = (dm.dataset(split) for split in ("train", "val", "test"))
    if test_part:
        assert (len(train), len(val), len(test)) == (13, 2, 15) and dm.test_root == tmp_path / "images" / test_part
    else:
        numbers = [*train.indices.tolist(), *val.indices.tolist(), *test.indices.tolist()]
        assert (len(train), len(val), len(test)) == (10, 2, 3) and sorted(numbers) == list(range(15))


def test_test_classes_are_matched_by_name(tmp_path: Path) -> None:
    write_folder(tmp_path)
    for file in (tmp_path / "test" / "class0").iterdir():
        file.unlink()
    (tmp_path / "test" / "class0").rmdir()
    assert set(ImageFolder(str(tmp_path)).dataset("test").labels.tolist()) == {1, 2}
    assert ImageFolder(str(tmp_path), num_classes=10).num_classes == 10
    (tmp_path / "test" / "class2").rename(tmp_path / "test" / "stranger")
    with pytest.raises(ValueError, match="stranger is no class of"):
        ImageFolder(str(tmp_path)).dataset("test")


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"val_size": 1437}, "val_size=1437 holds out all of the 1437 training images"),
        ({"val_size": 0}, "val_size=0"),
        ({"train_limit": 0}, "train_limit=0"),
        ({"test_limit": 0}, "test_limit=0"),
        ({"test_limit": -3}, "test_limit=-3"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"eval_batch_size": 0}, "eval_batch_size=0"),
        ({"workers": -1}, "workers=-1"),
        ({"split_seed": -1}, "split_seed=-1"),
        ({"size": 4}, "size=4"),
    ],
)
def test_senseless_settings_are_refused_by_name(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Digits(**settings).dataset("train")  # type: ignore[arg-type]
    assert "--data.init_args." in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="one of train, val, test"):
        Digits().dataset("valid")  # type: ignore[arg-type]


def test_missing_and_broken_mnist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"MNIST is missing.*download=true.*place") as caught:
        MNIST(str(tmp_path)).dataset("train")
    assert str(tmp_path / "MNIST" / "raw") in str(caught.value) and "\n" not in str(caught.value)
    write_mnist(tmp_path, label=11)
    with pytest.raises(ValueError, match=r"labels 11 \.\. 11, but num_classes=10"):
        MNIST(str(tmp_path), val_size=5).dataset("val")
    images = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    for broken in (images.read_bytes()[:500], b"\0\0\7\7" + images.read_bytes()[4:], b""):
        images.write_bytes(broken)
        with pytest.raises(ValueError, match="cannot be read"):
            MNIST(str(tmp_path), val_size=5).dataset("train")


class Nothing(ImageData):
    num_classes = 2
    image_shape = (1, 2, 2)

    def source(self, part: str) -> TensorImages:
        return TensorImages(torch.zeros(0, 1, 2, 2), torch.zeros(0))


def test_an_empty_source_is_refused() -> None:
    with pytest.raises(ValueError, match="Nothing has no test images"):
        Nothing().dataset("test")


def test_a_failed_download_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object) -> None:
        raise RuntimeError("Error downloading:\nno network")

    monkeypatch.setattr("torchvision.datasets.MNIST.download", fail)
    with pytest.raises(FileNotFoundError, match="downloading failed: Error downloading: no network"):
        MNIST(str(tmp_path), download=True).prepare_data()


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing at .*--data.init_args.root"):
        ImageFolder(str(tmp_path / "nowhere"))
    (tmp_path / "x.7z").write_bytes(b"7z")
    with pytest.raises(ValueError, match=r"x\.7z is neither a folder nor an archive"):
        ImageFolder(str(tmp_path / "x.7z"))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="nothing holds no class folders"):
        ImageFolder(str(tmp_path / "nothing"))
    folder = write_folder(tmp_path / "folder")
    for settings, message in (
        ({"num_classes": 2}, "num_classes=2, but .* holds 3 class folders"),
        ({"channels": 2}, "channels=2"),
        ({"image_size": 0}, "image_size=0"),
        ({"test_size": 1.0}, "test_size=1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            ImageFolder(str(folder), **settings)  # type: ignore[arg-type]
    (folder / "train" / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no image files"):
        ImageFolder(str(folder)).dataset("train")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_is_named(workers: int, tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    image = folder / "test" / "class1" / "3.png"
    for broken in (b"no image", image.read_bytes()[:60]):
        image.write_bytes(broken)
        dm = ImageFolder(str(folder), val_size=1, workers=workers)
        with pytest.raises(ValueError, match=r"3\.png is not a readable image"):
            list(dm.test_dataloader())


def test_bad_archives(tmp_path: Path) -> None:
    whole = pack(write_folder(tmp_path / "folder"), tmp_path / "whole.tar.gz").read_bytes()
    broken = {"cut.tar.gz": whole[: len(whole) // 2], "text.tar": b"not a tar" * 100, "none.tgz": b""}
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} is not a whole tar archive"):
            ImageFolder(str(tmp_path / name))
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        member = tarfile.TarInfo("../escaped.txt")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))
    with pytest.raises(ValueError, match=r"evil\.tar is not safe to unpack"):
        ImageFolder(str(tmp_path / "evil.tar"))
    assert not (tmp_path / "escaped.txt").exists()
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and path.name != "folder"]  # nothing half-done


@pytest.mark.long
@pytest.mark.parametrize("suffix", [".tar", ".zip"])
def test_archives_that_unpack_to_too_much(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "folder")
    archive = tmp_path / f"images{suffix}"
    if suffix == ".zip":
        shutil.make_archive(str(archive.with_suffix("")), "zip", folder)
    else:
        pack(folder, archive)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
        with pytest.raises(ValueError, match="more than its disk has left"):
            ImageFolder(str(archive))
    monkeypatch.setattr(archive_module, "MEMBERS", 3)
    with pytest.raises(ValueError, match=r"holds more than .* files"):
        ImageFolder(str(archive))
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and path.name != "folder"]


def test_pixels_and_labels_must_fit() -> None:
    with pytest.raises(ValueError, match="do not fit together"):
        TensorImages(torch.zeros(3, 1, 2, 2), torch.zeros(4))


def test_loaders_are_built_so_that_lightning_can_rebuild_them(tmp_path: Path) -> None:
    dm = small("mnist", tmp_path, workers=1)
    for loader in (dm.train_dataloader(), dm.val_dataloader(), dm.test_dataloader(), dm.predict_dataloader()):
        assert isinstance(loader, DataLoader) and loader.persistent_workers and not loader.drop_last
        assert loader.batch_size == (8 if isinstance(loader, ResumableLoader) else 7)
