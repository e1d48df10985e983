"""What the papers say, and what methods, experiments and suites say of them."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import Coded, digits, trainer
from torch import Tensor, nn

from adversarial_lightning import datamodules, networks
from adversarial_lightning.lightning_modules import VAECLA
from adversarial_lightning.networks import Normalize
from adversarial_lightning.networks.noisy import GaussianNoise

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
EXPERIMENTS = {path.stem: path for path in (CONFIGS / "experiments").rglob("*.yaml")}
PAPERS = "atent_table|thesis_table(?!.*restarts)|er_fig3_(?!.*eot)|er_table2"
TABLES = [path for path in sorted((CONFIGS / "suites").glob("*.yaml")) if re.match(PAPERS, path.stem)]

# Training images, with those that are held out.
IMAGES = {
    "MNIST": 60_000,
    "CIFAR10": 50_000,
    "STL10": 5_000,
    "TinyImageNet": 100_000,
    "ImageNet": 1_281_167,
}  # to train


def settings(name: str) -> dict[str, Any]:
    """The arguments of the model of an experiment."""
    arguments: dict[str, Any] = yaml.safe_load(EXPERIMENTS[name].read_text())["model"]["init_args"]
    return arguments


def network(spec: dict[str, Any]) -> nn.Module:
    arguments = {k: network(v) if isinstance(v, dict) else v for k, v in spec.get("init_args", {}).items()}
    made: nn.Module = getattr(networks, spec["class_path"])(**arguments)
    return made


@pytest.mark.parametrize("path", TABLES, ids=lambda p: p.stem)
def test_a_suite_says_which_rows_of_its_table_there_are(path: Path) -> None:
    """By experiments that exist."""
    comments = [line.removeprefix("# ") for line in path.read_text().splitlines() if line.startswith("# ")]
    (start,) = [i for i, line in enumerate(comments) if line.startswith("rows: ")]
    end = next(i for i in range(start + 1, len(comments)) if not comments[i].startswith("  "))
    named = re.findall(r"\b[a-z]\w*_\w+\b", " ".join(comments[start:end]))
    suites = {p.stem for p in (CONFIGS / "suites").glob("*.yaml")}
    assert named and set(named) <= set(EXPERIMENTS) | suites


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_header_counts_the_batches_that_there_are(name: str) -> None:
    text = EXPERIMENTS[name].read_text()
    said = re.search(r"^# cost: +(\d+) epochs? x ([\d,]+) (?:batches|steps)", text, re.M)
    experiment = yaml.safe_load(text)
    images = IMAGES.get(experiment["data"]["class_path"])
    if said and images:
        arguments = experiment["data"]["init_args"]
        defaults = inspect.signature(getattr(datamodules, experiment["data"]["class_path"])).parameters
        held_out = arguments.get("val_size", defaults["val_size"].default)
        batches = arguments.get("train_limit", images - held_out) / arguments["batch_size"]
        assert int(said[1]) == experiment["trainer"]["max_epochs"]
        assert int(said[2].replace(",", "")) == pytest.approx(batches, rel=0.02)


@pytest.mark.parametrize(
    "suite,entry,expected",
    [
        ("thesis_table3_1", "deepfool", (50, 0.5, False)),
        ("thesis_small_mnist", "deepfool_table3_1", (50, 0.5, False)),
        ("thesis_table4_1", "deepfool", (500, 0.1, True)),
        ("thesis_small_mnist", "deepfool", (500, 0.1, True)),
    ],
)
def test_rho_is_under_the_deepfool_of_its_table(suite: str, entry: str, expected: tuple[int, float, bool]) -> None:
    attack = yaml.safe_load((CONFIGS / "suites" / f"{suite}.yaml").read_text())[entry]
    if isinstance(attack, str):
        attack = yaml.safe_load((CONFIGS / "suites" / attack).read_text())
    arguments = attack["init_args"]
    assert (arguments["steps"], arguments["max_step"], arguments["box"]) == expected


@pytest.mark.parametrize("net", ["mlp", "lenet"])
def test_rows_of_table_4_1_have_one_network(net: str) -> None:
    """Chapter 4's: the critic's, with three layers of 1,200 units in the MLP, and initial weights N(0, 2 / inputs)."""
    rows = {n: settings(f"{n}_he") for n in (f"{m}_mnist_{net}" for m in ("standard", "fgsm_at", "vat"))}
    rows["margin"] = settings(f"margin_mnist_{net}_l2_he")
    rows["critic"] = settings(f"critic_mnist_{net}")
    assert len({str(row["network"]) for row in rows.values()}) == 1
    made = network(rows["critic"]["network"])
    hidden = [m for m in made.modules() if isinstance(m, nn.Linear)][:-1]
    assert [m.out_features for m in hidden] == ([1200, 1200, 1200] if net == "mlp" else [512])
    assert hidden[0].weight.std().item() == pytest.approx((2 / hidden[0].in_features) ** 0.5, rel=0.02)
    assert rows[f"fgsm_at_mnist_{net}"]["attack"]["init_args"]["eps"] == 0.1
    assert (rows[f"vat_mnist_{net}"]["eps"], rows["margin"]["penalty"], rows["margin"]["q"]) == (2, 0.1, 2)


@pytest.mark.parametrize("name,share", [("rse_mnist", 0.8), ("rse_mnist_small", 0.8), ("rse_cifar10", 0.2)])
def test_noise_of_rse_is_a_share_of_the_pixels_range(name: str, share: float) -> None:
    """In pixels of [0, 1], whatever the network makes of them: the authors' networks normalise nothing."""
    spec = settings(name)["network"]
    if spec["init_args"]["network"]["class_path"] == "ERNet":
        spec["init_args"]["network"]["init_args"]["width"] = 2
    noises = [m.std for m in network(spec).modules() if isinstance(m, GaussianNoise)]
    scale = [float(m.std.mean()) for m in network(spec).modules() if isinstance(m, Normalize)]
    assert noises[0] * (scale[0] if scale else 1.0) == pytest.approx(share)


@pytest.mark.parametrize("data", ["mnist", "cifar10", "mnist_small"])
def test_vaecla_has_the_rates_that_it_is_compared_with(data: str) -> None:
    ours, theirs = settings(f"vaecla_{data}"), settings(f"ecla_{data}")
    for name in ("optimizer", "classifier_optimizer"):
        assert ours[name] == theirs[name]
    assert ours["network"] == theirs["network"]


def test_vaecla_trains_its_classifier_by_an_optimizer_of_its_own(tmp_path: Path) -> None:
    def rate(lr: float) -> Any:
        return lambda p: torch.optim.SGD(p, lr=lr)

    def moved(encoder: float, classifier: float) -> tuple[bool, bool]:
        torch.manual_seed(0)
        made = VAECLA(Coded(), optimizer=rate(encoder), classifier_optimizer=rate(classifier))
        before: list[Tensor] = [m.weight.detach().clone() for m in (made.log_variance, made.network.classifier)]
        trainer(tmp_path, 1).fit(made, digits())
        after = (made.log_variance.weight, made.network.classifier.weight)
        first, second = (not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        return first, second

    assert moved(0.1, 0.0) == (True, False) and moved(0.0, 0.1) == (False, True)
