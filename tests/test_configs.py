"""Every YAML file is what it says: parts instantiate, experiments run one batch; suites are in test_suites.py."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import yaml
from helpers import save_network, with_denoisers
from jsonargparse import ArgumentParser
from torch import nn

from adversarial_lightning import defenses, networks
from adversarial_lightning.attacks import Attack
from adversarial_lightning.cli import configs, train
from adversarial_lightning.networks import MadryCNN
from adversarial_lightning.networks.vgg import PLANS

assert defenses  # imported before parsing
CONFIGS = Path(__file__).resolve().parent.parent / "configs"
EXPERIMENTS = sorted((CONFIGS / "experiments").rglob("*.yaml"))
FOLDERS = ("image_folder", "cifar10_jpeg")  # need a folder to read
SETS = [p for p in sorted((CONFIGS / "data").glob("*.yaml")) if p.stem not in FOLDERS]


# Data set by a word in a part's or experiment's name: image shape and classes. Anything else is MNIST's.
SHAPES = {
    "tiny_imagenet": ((3, 64, 64), 200),
    "cifar10": ((3, 32, 32), 10),
    "resnet20": ((3, 32, 32), 10),
    "stl10": ((3, 96, 96), 10),
    "imagenet": ((3, 224, 224), 1000),
}


def shape_of(path: Path) -> tuple[tuple[int, int, int], int]:
    return next((value for word, value in SHAPES.items() if word in path.stem), ((1, 28, 28), 10))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:ATENT's l2 samples end")  # smoothing's noise is many radii long
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_experiment_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch of everything, on a synthetic copy of the data set: what is tested is that the pieces fit.

    Large networks take part in `test_model_of_an_experiment_instantiates`; here a small one replaces them.
    """
    monkeypatch.setattr(sys, "argv", ["lightning"])  # Lightning warns about two command lines
    small: dict[str, object] = {"data.init_args.batch_size": 4, "data.init_args.eval_batch_size": 4}
    experiment = yaml.safe_load(path.read_text())
    model = yaml.safe_dump(experiment["model"])
    if "classifier" in experiment["model"]["init_args"]:  # an earlier run's
        shape, classes = shape_of(path)
        earlier = MadryCNN() if shape[0] == 1 else networks.ResNet(depth=8, num_classes=classes)
        small["model.init_args.classifier"] = save_network(earlier, tmp_path / "classifier.ckpt")
    quiet = {"trainer.accelerator": "cpu", "trainer.enable_progress_bar": "false"}
    quiet["trainer.enable_model_summary"] = "false"
    settings = {"trainer.fast_dev_run": "true", "trainer.default_root_dir": tmp_path, **small, **quiet}
    if experiment["data"]["class_path"] != "Digits":
        settings["data.init_args.synthetic"] = "true"
    if path.stem.endswith("_imagenet") and "tiny" not in path.stem:
        settings |= {"data.init_args.image_size": 32, "data.init_args.resized": 32, "data.init_args.workers": 0}
        settings |= {"data.init_args.pin_memory": "false"}
    shape, classes = shape_of(path)
    monkeypatch.setattr(networks.Whiten, "fit", lambda self, x: self.fitted.fill_(True))  # 3,072 eigenvectors take long
    if re.search("class_path: ERNet|NoisyConvolutions", model):  # no other network will do
        for depth, plan in PLANS.items():
            monkeypatch.setitem(PLANS, depth, [*("M" if n == "M" else 2 for n in plan[:-2]), 512, "M"])
        if shape[1] in (28, 96) and "class_path: ERNet" in model and "NoisyConvolutions" not in model:
            settings["model.init_args.network.init_args.width"] = 2
    elif shape[0] == 3 and not path.stem.endswith("nin") and "dae" not in path.stem:
        small_one = {"class_path": "ResNet", "init_args": {"depth": 8, "num_classes": classes}}
        settings["model.init_args.network"] = json.dumps(small_one)
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    cli = train.main(["fit", "--config", str(path), *words])
    assert cli.trainer.fit_loop.epoch_loop.batch_progress.total.completed == 1 and cli.trainer.global_step >= 1
    assert cli.config.fit.best.monitor in cli.trainer.callback_metrics


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_experiment_opens_as_a_document(path: Path) -> None:
    header = [line[2:] for line in path.read_text().splitlines() if line.startswith("# ")]
    text = "\n".join(header)
    assert f"lightning fit --config {path.stem}\n" in text
    assert re.search(r"^cost:", text, re.M) and re.search(r"^expected:", text, re.M)
    experiment = yaml.safe_load(path.read_text())
    assert list(experiment)[:3] == ["model", "data", "trainer"]
    assert experiment["trainer"]["default_root_dir"].startswith("runs/")


def test_experiments_write_into_folders_of_their_own() -> None:
    roots = [re.findall(r"^  default_root_dir: (\S+)$", path.read_text(), re.M) for path in EXPERIMENTS]
    assert len({root for (root,) in roots}) == len(EXPERIMENTS)


@pytest.mark.long
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_model_of_an_experiment_instantiates(path: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--model", type=pl.LightningModule)
    shape, classes = shape_of(path)
    model = yaml.safe_load(path.read_text())["model"]
    restores = model["class_path"] == "DenoisingAutoencoder"  # looks at the values of images
    with torch.device("cpu" if restores else "meta"):  # nothing is computed: the largest has 46 million parameters
        module = parser.instantiate(parser.parse_object({"model": model})).model
        assert module(torch.rand(2, *shape)).shape == ((2, *shape) if restores else (2, classes))


@pytest.mark.parametrize("path", sorted((CONFIGS / "networks").glob("*.yaml")), ids=lambda p: p.stem)
def test_network_file_instantiates(path: Path) -> None:
    """It gives the logits of the data that its command names."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=nn.Module, sub_configs=True)
    text = path.read_text()
    command = re.search(r"^# (lightning evaluate (?:.*\\\n#)*.*)", text, re.M)
    assert command and f"--network {path.stem} " in command[1] and "--data imagenet " in command[1]
    changed = re.search(r"--data.init_args.image_size (\d+)", command[1])
    size = int(changed[1]) if changed else shape_of(path)[0][1]
    with torch.device("meta"):
        network = parser.instantiate(parser.parse_args(["--network", str(path)])).network
        assert network(torch.rand(2, 3, size, size)).shape == (2, shape_of(path)[1])


@pytest.mark.parametrize("path", SETS, ids=lambda p: p.stem)
def test_data_file_instantiates(path: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--data", type=pl.LightningDataModule, sub_configs=True)
    assert parser.instantiate(parser.parse_args(["--data", str(path)])).data.num_classes in (10, 100, 200, 1000)


@pytest.mark.parametrize("path", sorted((CONFIGS / "trainer").glob("*.yaml")), ids=lambda p: p.stem)
def test_trainer_file_patches_an_experiment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its values arrive, and everything else stays as the experiment says."""
    monkeypatch.setattr(sys, "argv", ["lightning"])
    monkeypatch.setattr(train.CLI, "instantiate_classes", lambda self: None)
    words = ["fit", "--config", str(CONFIGS / "experiments" / "atent_cifar10_l2.yaml"), "--config", str(path)]
    monkeypatch.setattr(train.CLI, "_run_subcommand", lambda self, name: None)
    config = train.main([*words, "--data.init_args.batch_size", "32"]).config.fit
    for name, value in yaml.safe_load(path.read_text())["trainer"].items():
        assert config.trainer[name] == value
    assert config.trainer.max_epochs == 54 and config.data.init_args.batch_size == 32
    assert config.trainer.use_distributed_sampler is False and path.read_text().startswith("# ")


@pytest.mark.parametrize("path", sorted((CONFIGS / "attacks").glob("*.yaml")), ids=lambda p: p.stem)
def test_attack_file_instantiates(path: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--attack", type=Attack, sub_configs=True)
    attack = parser.instantiate(parser.parse_args(["--attack", str(path)])).attack
    assert isinstance(attack, Attack) and path.read_text().startswith("# ")


@pytest.mark.parametrize("path", sorted((CONFIGS / "defenses").glob("*.yaml")), ids=lambda p: p.stem)
def test_defense_file_instantiates(path: Path, tmp_path: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--defenses", type=list[Callable[[nn.Module], nn.Module]], sub_configs=True)
    channels = 3 if "channels: [3," in path.read_text() else 1
    model: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(64 * channels, 3))
    path = with_denoisers(path, tmp_path, model)
    for wrap in parser.instantiate(parser.parse_args(["--defenses", str(path)])).defenses:
        model = wrap(model)
    assert model(torch.rand(2, channels, 8, 8)).shape == (2, 3)


# --- All of them ------------------------------------------------------------------------------------------------------

# But for the trainings of a paper, which have its name.
EVERY = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "trainings")
NAMED = r"(--(?:config|suite|data|network|defenses|detector|attack)) ([a-z][\w.]*\w)"


def test_names_are_unique() -> None:
    """In all folders together: `lightning configs NAME` prints one file."""
    assert len({path.stem for path in EVERY}) == len(EVERY)


@pytest.mark.parametrize("path", EVERY, ids=lambda p: p.stem)
def test_headers_name_what_there_is_in_plain_words(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    header = "\n".join(re.findall(r"^# .*", path.read_text(), re.M))
    assert header.startswith("# ") and "configs/" not in header and "evaluate.py" not in header
    for option, name in re.findall(NAMED, header):
        assert Path(configs.find(option, name)).stem == name
    comments = " ".join(re.findall(r"#.*", path.read_text())).lower()
    for word in ("withstand", "opponent", "twin", "fragment", "verdict"):  # others: tests/test_structure.py
        assert word not in comments
