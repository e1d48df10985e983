"""What belongs to an evaluation: the code of a user's classes, and all pixels that are used."""

import json
import signal
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import save
from torch import Tensor

from adversarial_lightning.checkpoints.spec import describe
from adversarial_lightning.cli import evaluate
from adversarial_lightning.datamodules import Digits
from adversarial_lightning.datamodules.files import FileImages
from adversarial_lightning.datamodules.images import IndexedImages, TensorImages
from adversarial_lightning.evaluation.campaign.identity import data_part
from adversarial_lightning.evaluation.campaign.source_code import changed, code_part
from adversarial_lightning.evaluation.outcomes.subset import random_subset

# A user's project: what is named in a configuration, and what that imports in four ways.
PROJECT = {
    "my_defense.py": "from my_package.parts import scale\nclass Scaled: ...\ndef function(x):\n    import my_late\n",
    "my_package/__init__.py": "",
    "my_package/parts.py": "from . import deep\nfrom .deep import unit\nimport math, torch\nscale = 1\n",
    "my_package/deep/__init__.py": "unit = 1\n",
    "my_late.py": "value = 1\n",
    "my_other.py": "value = 1\n",
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the project, on the path; its modules are forgotten afterwards."""
    write(tmp_path, PROJECT)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    forget()


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def forget() -> None:
    for name in [n for n in sys.modules if n.startswith("my_")]:
        del sys.modules[name]


def part(*names: str) -> dict[str, dict[str, str]]:
    forget()
    __import__("my_defense")
    return code_part([{"class_path": name} for name in names])


@pytest.mark.parametrize("file", PROJECT)
def test_code_is_that_of_a_module_and_of_what_it_imports(file: str, project: Path) -> None:
    before = part("my_defense.Scaled", "my_defense.function", "adversarial_lightning.attacks.PGD")
    assert set(before) == {"my_defense.Scaled", "my_defense.function"}
    assert set(before["my_defense.Scaled"]) == {
        *("my_defense", "my_late", "my_package", "my_package.deep", "my_package.parts"),
    }
    (project / file).write_text(PROJECT[file] + "# edited\n")
    module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    sentences = changed(before, part(*before))
    if file == "my_other.py":  # nobody imports it
        assert not sentences
    else:
        assert sentences == [f"the code of {name} has changed since (in {module})" for name in before]


def test_the_place_of_code_does_not_matter(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = part("my_defense.Scaled")
    write(tmp_path / "elsewhere", PROJECT)
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    assert part("my_defense.Scaled") == before
    assert sys.modules["my_defense"].__file__ == str(tmp_path / "elsewhere" / "my_defense.py")


def test_of_installed_packages_the_version_counts(project: Path) -> None:
    assert part("torch.nn.ReLU") == {"torch.nn.ReLU": {"torch": version("torch")}}
    assert code_part(["relu", "0.5", "no.such.name", "torch", "numpy.pi", 3, None]) == {}


EVERYWHERE = """
from dataclasses import dataclass
from collections.abc import Callable
from torch import nn
from adversarial_lightning import attacks, datamodules, detectors
@dataclass(frozen=True)
class Attack(attacks.FGSM):
    function: Callable = abs
class Net(nn.Module): ...
class Detector(detectors.MaxProbability): ...
class Data(datamodules.Digits): ...
def defense(model: nn.Module) -> nn.Module: return model
def function(x): return x
"""


def test_code_is_found_wherever_it_is_named(project: Path) -> None:
    (project / "my_all.py").write_text(EVERYWHERE)
    (project / "s.yaml").write_text(
        "deep: {class_path: Restarts, init_args: {n: 2, attack: {class_path: my_all.Attack, init_args: "
        "{eps: 0.1, function: my_all.function}}}}"
    )
    for name in ("Net", "Detector", "Data"):
        (project / f"{name}.yaml").write_text(f"class_path: my_all.{name}\n")
    (project / "d.yaml").write_text("- my_all.defense\n")
    given = {"network": "Net", "detector": "Detector", "data": "Data", "defenses": "d", "suite": "s"}
    words = [f"--{name}={project / file}.yaml" for name, file in given.items()]
    settings = evaluate.options().parse_args([*words, f"--output={project}"])
    found = code_part([settings[name] for name in given])
    assert set(found) == {f"my_all.{name}" for name in ("Attack", "function", "Net", "Detector", "Data", "defense")}


@pytest.fixture
def handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


DEFENSE = (
    "import torch\nfrom my_helper import turn\nclass Turned(torch.nn.Module):\n    def __init__(self, classifier):\n"
)
DEFENSE += "        super().__init__()\n        self.classifier = classifier\n    def forward(self, x):\n"
DEFENSE += "        return self.classifier(turn(x))\n"
DEFENSE += "def turned(classifier: torch.nn.Module) -> torch.nn.Module:\n    return Turned(classifier)\n"


@pytest.mark.parametrize("entry, name", [("class_path: my_defense.Turned", "Turned"), ("my_defense.turned", "turned")])
def test_an_edited_helper_of_a_defense_is_refused_by_name(
    entry: str, name: str, project: Path, handler: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "my_defense.py").write_text(DEFENSE)
    (project / "my_helper.py").write_text("def turn(x): return x\n")
    (project / "defenses.yaml").write_text(f"- {entry}\n")
    (project / "suite.yaml").write_text("fgsm: {class_path: FGSM, init_args: {eps: 0.05}}\n")
    given = {"checkpoint": save(project / "a.ckpt"), "suite": project / "suite.yaml", "audit": "none", "limit": 20}
    given |= {"defenses": project / "defenses.yaml", "output": project / "out", "accelerator": "cpu"}
    command = [f"--{name}={value}" for name, value in given.items()]
    assert evaluate.main(command) == 0 and evaluate.main(command) == 0
    forget()
    (project / "my_helper.py").write_text("def turn(x): return x.flip(3)\n")
    capsys.readouterr()
    assert evaluate.main(command) == 2
    assert f"evaluation, the code of my_defense.{name} has changed since (in my_helper)" in capsys.readouterr().err


def pixel(images: IndexedImages, number: int, by: float) -> IndexedImages:
    """The same images, but for the last pixel of one."""
    assert isinstance(images, TensorImages)
    images.pixels = images.pixels.clone()
    images.pixels[number, 0, -1, -1] += by  # type: ignore[operator]
    return images


def in_memory(pixels: Tensor) -> IndexedImages:
    return TensorImages(pixels, torch.zeros(len(pixels)))


@pytest.mark.parametrize(
    "pixels, by", [(torch.zeros(40, 1, 4, 4, dtype=torch.uint8), 1), (torch.rand(40, 1, 4, 4), 1e-6)]
)
def test_every_pixel_of_the_chosen_images_counts(pixels: Tensor, by: float) -> None:
    def found(images: IndexedImages, chosen: Any) -> dict[str, Any]:
        return data_part(describe(Digits(size=8)), images, chosen)

    chosen = [2, 3, 17, 39]
    before = found(in_memory(pixels), chosen)
    for number in range(40):
        after = found(pixel(in_memory(pixels), number, by), chosen)
        assert (after == before) is (number not in chosen)
        assert after["fingerprint"] == before["fingerprint"]
    assert found(in_memory(pixels), [2, 3, 17])["fingerprint"] == before["fingerprint"]  # the same set of images


def test_images_in_files_count_by_their_bytes(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]))
    images = FileImages([str(path) for path in paths], torch.zeros(3), 8, 1)
    spec = describe(Digits(size=8))
    before = data_part(spec, images, [0, 2])
    paths[1].write_bytes(b"another")
    assert data_part(spec, images, [0, 2]) == before
    paths[2].write_bytes(b"another")
    assert data_part(spec, images, [0, 2])["pixels"] != before["pixels"]


@pytest.mark.parametrize("split, refused", [("test", True), ("test", False), ("val", True)])
def test_changed_images_are_refused(
    split: str,
    refused: bool,
    tmp_path: Path,
    handler: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A test image that is used, one that is not, and one for the threshold of a detector."""
    (tmp_path / "suite.yaml").write_text("fgsm: {class_path: FGSM, init_args: {eps: 0.05}}\n")
    (tmp_path / "detector.yaml").write_text("class_path: MaxProbability\n")
    given = {"checkpoint": save(tmp_path / "a.ckpt"), "suite": tmp_path / "suite.yaml", "audit": "none", "limit": 20}
    given |= {"detector": tmp_path / "detector.yaml", "output": tmp_path / "out", "accelerator": "cpu"}
    command = [f"--{name}={value}" for name, value in given.items()]
    assert evaluate.main(command) == 0
    whole = Digits.dataset

    def other(self: Digits, which: Any) -> IndexedImages:
        images = whole(self, which)
        used = random_subset(images.indices, 20)
        position = used[0] if refused else next(p for p in range(len(images)) if p not in used)
        return pixel(images, int(images.indices[position]), 1) if which == split else images

    monkeypatch.setattr(Digits, "dataset", other)
    capsys.readouterr()
    assert evaluate.main(command) == (2 if refused else 0)
    words = {"test": "with other data (the images have changed)", "val": "with other calibration images"}
    assert (words[split] in capsys.readouterr().err) is refused
    assert json.loads((tmp_path / "out" / "results.json").read_text())["data"]["pixels"]
