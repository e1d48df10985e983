"""The package as others meet it: one namespace, a wheel that works alone, configurations by name, files of old."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from configparser import ConfigParser
from pathlib import Path

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

import adversarial_lightning
from adversarial_lightning import datamodules, networks
from adversarial_lightning.attacks import Surrogate
from adversarial_lightning.checkpoints.load import load_network
from adversarial_lightning.checkpoints.spec import build
from adversarial_lightning.checkpoints.spec import catalogue as listed
from adversarial_lightning.cli import configs, main
from adversarial_lightning.cli.class_names import catalogue, prefer_ours
from adversarial_lightning.cli.messages import shorten
from adversarial_lightning.configs import FOLDER

ROOT = Path(__file__).resolve().parent.parent
OLD = Path(__file__).parent / "fixtures" / "made_by_0_1"  # by commit a026d16
SMALL = ["--trainer.max_epochs", "1", "--data.init_args.train_limit", "96", "--data.init_args.val_size", "20"]
SMALL += ["--data.init_args.test_limit", "20", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


@pytest.fixture
def decoys(tmp_path: Path) -> Path:
    """A project with folders of the same names as ours, as half of all Lightning projects have."""
    for name in (*adversarial_lightning.ROOMS, "configs", "train", "evaluate"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('this is another project')\n")
    return tmp_path


def run(*words: str | Path, cwd: Path, ok: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **variables}
    done = subprocess.run([*map(str, words)], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert (done.returncode == 0) == ok, done.stdout[-3000:] + done.stderr[-3000:]
    return done


EVERYTHING = """
import inspect, sys
sys.path.insert(0, "")
import adversarial_lightning as al
assert not [name for name in sys.modules if name.startswith("adversarial_lightning.")], "rooms are loaded when used"
rooms = [getattr(al, room) for room in al.ROOMS]
names = [name for room in rooms for name in room.__all__ if getattr(room, name) is not None]
print(len(names), al.__version__)
"""


@pytest.mark.long
def test_every_public_name_imports_beside_folders_of_the_same_names(decoys: Path) -> None:
    number, version = run(sys.executable, "-c", EVERYTHING, cwd=decoys).stdout.split()
    assert int(number) > 120 and re.fullmatch(r"\d+\.\d+\.\d+", version)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = adversarial_lightning.nothing


TWICE = """
import sys
from collections import Counter
from pathlib import Path
sys.path.insert(0, "")
from adversarial_lightning.cli import compare, evaluate, fit_detector, main
status = main(sys.argv[1:])
root = Path({root!r})
ours = [Path(m.__file__).resolve() for m in list(sys.modules.values()) if getattr(m, "__file__", None)]
ours = Counter(p for p in ours if p.is_relative_to(root) and ".venv" not in p.parts)
print("modules", len(ours), [str(p) for p, n in ours.items() if n > 1])
sys.exit(status)
"""


@pytest.mark.long
def test_no_module_is_loaded_under_two_names(tmp_path: Path) -> None:
    """In the clone itself, whose folders lie on the path, with a class path as written before the namespace."""
    (tmp_path / "old.yaml").write_text("model:\n  init_args:\n    network: {class_path: networks.SmallCNN}\n")
    words = ["fit", "--config", "quickstart", "--config", tmp_path / "old.yaml", "--trainer.default_root_dir", tmp_path]
    more = ["--trainer.fast_dev_run", "true", "--trainer.accelerator", "cpu"]
    done = run(sys.executable, "-c", TWICE.format(root=str(ROOT)), *words, *more, cwd=ROOT)
    number, twice = re.findall(r"^modules (\d+) (.*)$", done.stdout, re.M)[0]
    assert int(number) > 100 and twice == "[]"


def test_setup_lists_every_package() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    named = set(setup["options"]["packages"].split())
    folders = [ROOT / room for room in (*adversarial_lightning.ROOMS, "configs", "adversarial_lightning")]
    found = {str(p.parent.relative_to(ROOT)).replace("/", ".") for f in folders for p in f.rglob("__init__.py")}
    assert named == {name if name.startswith("adversarial") else f"adversarial_lightning.{name}" for name in found}


def borrow(site: Path) -> None:
    """Let a fresh environment see the packages of this one, without our editable install: .pth files are not read."""
    folders = [p for p in sys.path if p.endswith("site-packages")]
    (site / "dependencies.pth").write_text("".join(f"{p}\n" for p in folders))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from what git knows and what is new, and a fresh environment with it and our dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, files):
        if not name.startswith(("tests", "results")) and (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, folder / "source"]
    run(*pip, *build, cwd=folder)
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    site = folder / "venv" / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    borrow(site)
    run(*pip, "--python", python, "install", "--quiet", "--no-deps", *folder.glob("*.whl"), cwd=folder)
    return folder / "venv" / "bin"


@pytest.mark.long
def test_the_wheel_runs_the_quickstart_alone(wheel: Path, decoys: Path) -> None:
    where = run(wheel / "python", "-c", "import adversarial_lightning as al; print(al.attacks.__file__)", cwd=decoys)
    assert where.stdout.startswith(str(wheel.parent))
    assert "quickstart: ATENT" in run(wheel / "lightning", "configs", cwd=decoys).stdout
    run(wheel / "lightning", "fit", "--config", "quickstart", *SMALL, cwd=decoys)
    (decoys / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom adversarial_lightning.attacks import PGD\n"
        "@dataclass(frozen=True)\nclass Mine(PGD):\n    steps: int = 1\n"
    )
    (decoys / "mine.yaml").write_text("mine: {class_path: mine.Mine, init_args: {eps: 0.1}}\n")
    checkpoint = decoys / "runs" / "quickstart" / "atent" / "checkpoints" / "last.ckpt"
    for name, suite in (("a", "quick"), ("b", "mine.yaml")):
        words = ["--checkpoint", checkpoint, "--suite", suite, "--audit", "none", "--output", name]
        done = run(wheel / "lightning", "evaluate", *words, "--limit", "8", "--accelerator", "cpu", cwd=decoys)
        assert " of SmallCNN at linf" in done.stdout and (decoys / name / "report.html").exists()
    assert "mine" in run(wheel / "lightning", "compare", "a", "b", cwd=decoys).stdout


@pytest.mark.long
@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_a_clone_that_is_not_installed_says_what_to_do(script: str, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    site = tmp_path / "venv" / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    borrow(site)
    done = run(tmp_path / "venv" / "bin" / "python", ROOT / script, "--help", cwd=tmp_path, ok=False)
    assert done.stderr.startswith("error: ") and "make install" in done.stderr and "Traceback" not in done.stderr


def test_class_names_are_ours_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision has an MLP and a JPEG of its own; a user's module wins over a name of old."""
    from torchvision.ops import MLP
    from torchvision.transforms.v2 import JPEG

    assert MLP and JPEG
    prefer_ours()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=nn.Module)
    for name in ("MLP", "JPEG", "networks.MLP", "adversarial_lightning.networks.MLP"):
        found = parser.instantiate(parser.parse_args([f"--network={name}"])).network
        assert type(found).__module__.startswith("adversarial_lightning.")
    parser.add_argument("--surrogate", type=Surrogate)
    (tmp_path / "x.ckpt").touch()
    old = {"class_path": "evaluation.surrogate.Checkpoint", "init_args": {"path": str(tmp_path / "x.ckpt")}}
    found = parser.instantiate(parser.parse_args([f"--surrogate={json.dumps(old)}"])).surrogate
    assert type(found).__name__ == "CheckpointSurrogate"
    (tmp_path / "networks.py").write_text("from torch import nn\nclass MLP(nn.Identity): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert type(parser.instantiate(parser.parse_args(["--network=networks.MLP"])).network).__module__ == "networks"
    monkeypatch.delitem(sys.modules, "networks")
    assert len(catalogue()) > 100


@pytest.mark.parametrize(
    "words, found",
    [
        (["--config", "quickstart"], "experiments/quickstart.yaml"),
        (["--config=quickstart.yaml"], "experiments/quickstart.yaml"),
        (["--config", "configs/experiments/quickstart.yaml"], "experiments/quickstart.yaml"),
        (["--config", "ddp"], "trainer/ddp.yaml"),
        (["--config", "atent_mnist_small"], "experiments/small/atent_mnist_small.yaml"),
        (["--config", "small/atent_mnist_small.yaml"], "experiments/small/atent_mnist_small.yaml"),
        (["--suite", "er_table1_0.03"], "suites/er_table1_0.03.yaml"),
        (["--suite", "quick"], "suites/quick.yaml"),
        (["--data", "mnist"], "data/mnist.yaml"),
        (["--defenses", "jpeg"], "defenses/jpeg.yaml"),
    ],
)
def test_configurations_are_found_by_name(
    words: list[str], found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert configs.resolved(words)[-1].partition("=")[2 if "=" in words[-1] else 0] == str(FOLDER / found)
    (tmp_path / "quick").write_text("a file of one's own comes first")
    assert configs.resolved(["--suite", "quick", "--data", "MNIST", "--limit", "quick"])[1::2] == [
        "quick",
        "MNIST",
        "quick",
    ]
    for wrong, says in (
        (["--suite", "/no/such"], "no such file"),
        (["--suite", "quik"], "did you mean quick?"),
        (["--data=mnits"], "did you mean mnist?"),
    ):
        with pytest.raises(ValueError, match=re.escape(says)):
            configs.resolved(wrong)


def test_configs_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    text = capsys.readouterr().out
    assert "quickstart: ATENT" in text and "cost: about 90 s" in text and "expected: clean about 0.97" in text
    assert main(["configs", "quick"]) == 0 and "apgd_margin: {class_path: APGD" in capsys.readouterr().out
    assert main(["configs", "er_table1_0.03"]) == 0 and "AutoAttack standard" in capsys.readouterr().out
    assert main(["configs", "quik"]) == 2 and "did you mean quick?" in capsys.readouterr().err
    assert main([]) == 2 and main(["fly"]) == 2 and "there is no command 'fly'" in capsys.readouterr().err
    assert main(["--help"]) == 0 and "fit-detector" in capsys.readouterr().out


# --- What people have on disk -----------------------------------------------------------------------------------------


def test_there_is_an_old_checkpoint_of_every_class() -> None:
    names = {p.stem for p in OLD.glob("*.pt")}
    kept = {cls.__name__ for cls in listed(networks) if issubclass(cls, nn.Module)} - {"Normalize"}
    assert {f"network_{name}" for name in kept} <= names
    assert {f"data_{c.__name__}" for c in listed(datamodules) if c is not datamodules.ImageData} <= names


@pytest.mark.parametrize("path", sorted(OLD.glob("network_*.pt")), ids=lambda p: p.stem)
def test_old_networks_open(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    network, _ = load_network(path)
    assert type(network).__name__ == path.stem.removeprefix("network_")
    state = network.state_dict()
    assert content["state_dict"] and len(state) == len(content["state_dict"])
    assert all(torch.equal(state[name.removeprefix("network.")], t) for name, t in content["state_dict"].items())


@pytest.mark.parametrize("path", sorted(OLD.glob("data_*.pt")), ids=lambda p: p.stem)
def test_old_data_opens(path: Path) -> None:
    spec = torch.load(path, weights_only=True)["catalogue"]["data"]
    data = build(spec, listed(datamodules))
    assert type(data).__name__ == path.stem.removeprefix("data_")
    given = {name: value for name, value in spec["init_args"].items() if value is not None}
    assert {name: getattr(data, name) for name in given} == given


@pytest.mark.long
def test_an_old_training_goes_on_and_is_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The checkpoint and config.yaml of two epochs: a third one, and an evaluation with the same figures as then.

    Class names of before work; an argument that is called otherwise now is named in a sentence.
    """
    old = ["--suite", str(OLD / "suite.yaml"), "--checkpoint", str(OLD / "atent_digits.pt"), "--output", "out"]
    assert main(["evaluate", *old]) == 2
    assert "'samples' is not accepted: it is called eot_samples now" in capsys.readouterr().err
    for name in ("config.yaml", "suite.yaml"):
        (tmp_path / name).write_text((OLD / name).read_text().replace("samples:", "eot_samples:"))
    words = ["--config", tmp_path / "config.yaml", "--ckpt_path", OLD / "atent_digits.pt", "--trainer.max_epochs", "3"]
    words += ["--trainer.default_root_dir", tmp_path, "--trainer.logger.init_args.save_dir", tmp_path]
    words += ["--best.dirpath", tmp_path / "checkpoints", "--last.dirpath", tmp_path / "checkpoints"]
    run(sys.executable, ROOT / "train.py", "fit", *words, cwd=tmp_path)
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 2
    words = ["--checkpoint", OLD / "atent_digits.pt", "--suite", tmp_path / "suite.yaml", "--limit", "20"]
    words += ["--sample", "first"]  # as 0.1 did
    words += ["--audit", "none", "--output", tmp_path / "out", "--accelerator", "cpu"]
    assert main(["evaluate", *map(str, words)]) == 0
    now = json.loads((tmp_path / "out" / "results.json").read_text())
    then = json.loads((OLD / "finished" / "results.json").read_text())
    assert now["clean_accuracy"] == then["clean_accuracy"]
    assert [a["robust_accuracy"] for a in now["attacks"]] == [a["robust_accuracy"] for a in then["attacks"]]
    assert main(["compare", str(OLD / "finished"), str(tmp_path / "out")]) == 0


def test_an_old_evaluation_is_not_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its rows were made by other code: it is refused, in a sentence that says what to do, and left as it was."""
    folder = tmp_path / "begun"
    (folder / "ledgers").mkdir(parents=True)
    before = {}
    for name in ("campaign.json", "ledgers/rank0.sqlite"):
        before[name] = (OLD / "begun" / name).read_bytes()
        (folder / name).write_bytes(before[name])
    (tmp_path / "suite.yaml").write_text((OLD / "suite.yaml").read_text().replace("samples:", "eot_samples:"))
    words = ["--checkpoint", OLD / "atent_digits.pt", "--suite", tmp_path / "suite.yaml", "--limit", "20"]
    words += ["--sample", "first"]  # as 0.1 did
    words += ["--output", folder, "--accelerator", "cpu"]
    assert main(["evaluate", *map(str, words)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "choose another --output" in said.lower() and said.count("\n") == 1
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_only_a_class_that_has_the_new_argument_is_told_of_it() -> None:
    key = "Problem with given class_path 'adversarial_lightning.{}':\n    Option '{}' is not accepted"
    assert "it is called eot_samples now" in shorten(key.format("attacks.PGD", "samples"))
    assert "it is called" not in shorten(key.format("networks.MLP", "samples"))
    grouped = shorten(key.format("lightning_modules.AdversaryCritic", "game"))
    assert "it is called critic_settings.gan_loss now" in grouped
