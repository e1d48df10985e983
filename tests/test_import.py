"""Checkpoints that are not ours: evaluate.py --weights, with checksum, mapping and the published figure."""

import hashlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from adversarial_lightning.checkpoints.files import digest_weights
from adversarial_lightning.cli import evaluate
from adversarial_lightning.datamodules import Digits
from adversarial_lightning.evaluation.outcomes.imported_proof import compared
from adversarial_lightning.evaluation.outcomes.subset import Samples
from adversarial_lightning.evaluation.report import headlines
from adversarial_lightning.evaluation.report.subject import badge_state
from adversarial_lightning.networks import MLP
from adversarial_lightning.networks.foreign_weights import load_weights

SUITE = "fgsm: {class_path: FGSM, init_args: {eps: 0.05}}\n"
NETWORK = "class_path: networks.MLP\ninit_args: {features: 64, hidden: [16]}\n"
DATA = "class_path: datamodules.Digits\ninit_args: {size: 8}\n"


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Path]:
    """A quickly trained state dict as others save theirs, and the YAML files beside it."""
    torch.manual_seed(0)
    network = MLP(features=64, hidden=[16])
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    x, y, _ = Digits(size=8).dataset("train").__getitems__(range(500))
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    state = {f"module.{n}": t for n, t in network.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "theirs.pt")
    raw = {name: tensor + 1 for name, tensor in state.items()}
    torch.save({"state_dict": raw, "state_dict_ema": state | {"loss.w": torch.ones(1)}}, tmp_path / "two.pt")
    for name, text in {"suite": SUITE, "network": NETWORK, "data": DATA}.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    handler = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, handler)


def run(files: Path, **more: Any) -> int:
    given = {name: files / f"{name}.yaml" for name in ("suite", "network", "data")}
    given = {
        **given,
        "weights": files / "theirs.pt",
        "audit": "none",
        "output": files / "out",
        "accelerator": "cpu",
        "limit": 60,
        **more,
    }
    return evaluate.main([f"--{name}={value}" for name, value in given.items() if value is not None])


@pytest.mark.long
def test_foreign_weights_are_proved(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(files) == 0
    proof = json.loads((files / "out" / "weights.json").read_text())
    results = json.loads((files / "out" / "results.json").read_text())
    digest = hashlib.sha256((files / "theirs.pt").read_bytes()).hexdigest()
    assert proof["sha256"] == results["checkpoint"]["sha256"] == digest
    assert proof["mapped"]["layers.1.weight"] == "module.layers.1.weight" and not proof["missing"]
    assert results["clean_accuracy"] > 0.6 and results["published"] is None
    assert results["model"]["network"]["class_path"] == "networks.MLP" and results["model"]["method"] is None
    assert "no published figure" in capsys.readouterr().out


def test_a_published_figure_that_differs_stands_in_every_format(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Page, text, results, terminal and exit status; and whoever reads the page sees no green."""
    assert run(files, published=0.9) == 0 and "90.00 % published, which agrees" in capsys.readouterr().out
    assert run(files, published=0.2) == 3  # the evaluation is there, only the comparison is new
    results = json.loads((files / "out" / "results.json").read_text())
    assert results["published"]["differs"] is True and results["published"]["clean_accuracy"] == 0.2
    assert results["published"]["difference"] == pytest.approx(results["clean_accuracy"] - 0.2, abs=1e-6)
    page, text = ((files / "out" / f"report.{kind}").read_text() for kind in ("html", "md"))
    for said in (page, text, capsys.readouterr().out):
        assert "20.00 % published, which DIFFERS" in said
    checks = [{"id": "C1", "name": "n", "verdict": "passed"}]
    audited = {**results, "audit": {"level": "quick", "checks": checks, "state": "passed", "bound": 0.05, "claims": []}}
    assert badge_state(audited) == "failed" and badge_state({**audited, "published": None}) == "passed"
    assert all("differs from the published" in sentence for sentence in headlines(audited))
    assert 'class="badge failed"' in page and "clean accuracy differs from the published one" in page


@pytest.mark.parametrize(
    "more, message",
    [
        ({"network": None}, "describe it in a YAML file"),
        ({"weights": None}, "MLP alone is random"),
        ({"weights": None, "network": None}, "give either --checkpoint"),
        ({"weights": None, "network": None, "weights_key": "ema"}, "choose in the file --weights"),
        ({"checkpoint": "a.ckpt"}, "give either --checkpoint"),
        ({"published": 84.92}, "is a share in [0, 1]"),
        ({"data": None}, "give --data"),
        ({"weights": "nowhere.pt"}, "there are no weights at nowhere.pt"),
    ],
)
def test_mistakes_are_named(
    more: dict[str, Any], message: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(files, **more) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not (files / "out").exists()


def test_a_network_of_another_shape_is_refused(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "network.yaml").write_text(NETWORK.replace("16", "17"))
    assert run(files) == 2
    assert "of another shape (3): layers.1.weight" in capsys.readouterr().err


def test_the_choice_of_weights_is_recorded_and_belongs_to_the_evaluation(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(files, weights=files / "two.pt") == 2
    assert "differ: state_dict, names in module; state_dict_ema, names in module" in capsys.readouterr().err
    assert run(files, weights=files / "two.pt", weights_key="state_dict_ema") == 0
    results = json.loads((files / "out" / "results.json").read_text())
    assert results["weights"] == {
        **{"key": "state_dict_ema", "prefix": "module", "mapped": 4, "kept": [], "extra": ["loss.w"]},
        "left_out": {"outside of module": ["loss.w"]},
        "passed_over": {"state_dict": "it fits too, with other values"},
    }
    assert results["clean_accuracy"] > 0.6 and any("loss.w" in text for text in results["warnings"])
    assert run(files, weights=files / "two.pt", weights_key="state_dict") == 2
    assert "another evaluation, with other checkpoint" in capsys.readouterr().err


BRINGS_WEIGHTS = """
import torch
from adversarial_lightning.networks import MLP


class Fixed(MLP):
    def __init__(self, file: str) -> None:
        super().__init__(features=64, hidden=[16])
        self.load_state_dict({n.removeprefix("module."): t for n, t in torch.load(file)["state_dict"].items()})
"""


def test_a_network_that_brings_its_weights_needs_no_file(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (files / "brings_weights.py").write_text(BRINGS_WEIGHTS)
    monkeypatch.syspath_prepend(files)
    theirs = f"class_path: brings_weights.Fixed\ninit_args: {{file: {files / 'theirs.pt'}}}\n"
    (files / "network.yaml").write_text(theirs)
    assert run(files, weights=None) == 0
    results = json.loads((files / "out" / "results.json").read_text())
    network = MLP(features=64, hidden=[16])
    load_weights(network, files / "theirs.pt")
    assert results["checkpoint"] == {"path": "brings_weights.Fixed", "sha256": digest_weights(network)}
    assert results["weights"] is None and results["clean_accuracy"] > 0.6


@pytest.mark.parametrize("network", [None, "network.yaml"])
def test_a_checkpoint_of_another_project_is_told_what_to_do(
    network: str | None, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": torch.load(files / "theirs.pt")["state_dict"], "epoch": 3}, files / "theirs.ckpt")
    given = {"weights": None, "checkpoint": files / "theirs.ckpt", "network": network and files / network}
    assert run(files, **given) == 2
    assert f"--weights {files / 'theirs.ckpt'} --network FILE" in capsys.readouterr().err


# Measured and published accuracy, images, whether they differ; the interval of 0.85 is [0.827, 0.871] on 1,000 of many.
AGREEMENT: dict[str, tuple[float, float, Samples, bool]] = {
    "inside the interval of a subset": (0.85, 0.83, Samples("random", 0, 1000, 10**9), False),
    "outside the interval of a subset": (0.85, 0.82, Samples("random", 0, 1000, 10**9), True),
    "the same, of nearly all images": (0.85, 0.83, Samples("random", 0, 1000, 1010), True),
    "nearly all: rounding is no difference": (0.8492, 0.849, Samples("random", 0, 9999, 10000), False),
    "all, rounded": (0.8492, 0.849, Samples("all", None, 10000, 10000), False),
    "all, a tenth of a point": (0.849, 0.85, Samples("all", None, 10000, 10000), False),
    "all, two tenths": (0.8492, 0.8512, Samples("all", None, 10000, 10000), True),
    "the first are no sample": (0.85, 0.79, Samples("first", None, 1000, 10000), False),
    "the first, but far away": (0.15, 1.0, Samples("first", None, 1000, 10000), True),
}


@pytest.mark.parametrize("case", AGREEMENT)
def test_what_differs(case: str) -> None:
    measured, published, samples, differs = AGREEMENT[case]
    assert compared(measured, published, samples)["differs"] is differs
