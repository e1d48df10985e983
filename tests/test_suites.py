"""Every suite runs as its header says, to the report, with budgets cut down to a few steps."""

import json
import re
import shlex
import signal
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import save, with_denoisers
from torch import nn

from adversarial_lightning import attacks, defenses
from adversarial_lightning.attacks import Attack, AutoAttack, threat
from adversarial_lightning.checkpoints.load import load_network
from adversarial_lightning.checkpoints.spec import catalogue
from adversarial_lightning.cli import evaluate

ROOT = Path(__file__).resolve().parent.parent
SUITES = sorted((ROOT / "configs" / "suites").glob("*.yaml"))
DEFENSES = sorted((ROOT / "configs" / "defenses").glob("*.yaml"))
SMALL = {  # most that is left of each budget: enough for every branch, not for an attack
    **{
        name: 2
        for name in ("steps", "search_steps", "finetune", "restarts", "n", "n_targets", "eot_samples", "particles")
    },
    **{name: 2 for name in ("deepfool_steps", "candidates", "starts", "probes", "votes", "generations", "pixels")},
    **{"queries": 12, "population": 6, "runners_up": 2},
}


def small(attack: Attack) -> Attack:
    """The same attack, and the same parts, with every budget cut down to `SMALL`."""
    changes: dict[str, Any] = {}
    for field in fields(attack):  # type: ignore[arg-type]
        value = getattr(attack, field.name)
        if isinstance(value, Attack):
            changes[field.name] = small(value)
        elif isinstance(value, list | tuple) and any(isinstance(a, Attack) for a in value):
            changes[field.name] = [small(a) for a in value]
        elif type(value) is int and value > 1:
            changes[field.name] = min(value, SMALL[field.name])  # a KeyError here: a budget that SMALL must name
    return replace(attack, **changes)  # type: ignore[type-var]


def command(path: Path) -> list[str]:
    """The words behind ``lightning evaluate`` of the command in a suite's header."""
    found = re.search(r"^# command: ((?:.*\\\n#)*.*)", path.read_text(), re.M)
    assert found, f"{path.name} has no command"
    words = shlex.split(found[1].replace("\\\n#", ""))
    assert words[:2] == ["lightning", "evaluate"] and words[words.index("--suite") + 1] == path.stem
    return words[2:]


def whole(path: Path) -> str:
    """The text of a suite with the rows that its end keeps for people with more files, ``#: ``, put in."""
    return re.sub(r"^#: ", "", path.read_text(), flags=re.M)


@cache
def entries(path: Path) -> dict[str, Attack]:
    """The attacks of a suite by name, as an evaluation sees them."""
    parser = evaluate.options()
    words = ["--suite", str(path), "--output", "x"]
    return attacks.expanded(parser.instantiate(parser.parse_args(words)).suite)


def names(text: str) -> set[str]:
    """The names of the entries in the text of a suite."""
    return set(re.findall(r"^([\w.]+):", text, re.M))


def leaves(attack: Attack) -> set[type]:
    return {type(attack)}.union(*map(leaves, attacks.members(attack)))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small net that knows 8x8 digits a little."""
    return save(tmp_path_factory.mktemp("checkpoint") / "tiny.ckpt")


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """evaluate.py with its own parser, whose suites lose their budgets; the SIGTERM handler is put back afterwards."""
    options, ensemble = evaluate.options, AutoAttack.ensemble

    def cutting() -> Any:
        parser = options()
        instantiate = parser.instantiate

        def smaller(settings: Any) -> Any:
            objects = instantiate(settings)
            suite = attacks.expanded(objects.suite)
            cut = {name: small(attack) for name, attack in suite.items()}
            for name, attack in suite.items():
                assert leaves(cut[name]) == leaves(attack) and threat(cut[name]) == threat(attack)
            objects.suite = cut
            return objects

        parser.instantiate = smaller
        return parser

    monkeypatch.chdir(ROOT)  # commands are given from there
    monkeypatch.setattr(evaluate, "options", cutting)
    monkeypatch.setattr(AutoAttack, "ensemble", lambda self, classes: [small(a) for a in ensemble(self, classes)])
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def run(words: list[str], checkpoint: Path, output: Path, defense: Path | None) -> dict[str, Any]:
    """The results of a command of a header, its placeholders filled in, on six images."""
    if defense is not None:
        defense = with_denoisers(defense, output.parent, load_network(checkpoint)[0])
    put = {"CKPT": str(checkpoint), "DIR": str(output), "DEFENSE": str(defense)}
    put["DETECTOR"] = "max_probability"
    words = [put.get(word, word) for word in words]
    assert evaluate.main([*words, "--limit", "6", "--accelerator", "cpu", "--audit", "none"]) == 0
    results: dict[str, Any] = json.loads((output / "results.json").read_text())
    return results


# MALADE and RIDE in the suites made for them; in others, and in RIDE's short one, every defense that needs neither, nor
# a network that draws noise.
PLAIN = [path for path in DEFENSES if path.stem != "rse" and not re.search("denoiser:|RIDE", path.read_text())]
OWN = {"malade": "malade_mnist.yaml", "ride": "ride_mnist_fast.yaml"}
CORRUPTIONS = ("gaussian", "saltandpepper", "salt_and_pepper")  # may ask the model nothing, as gray boxes do
RUNS = [
    (path, defense)
    for path in SUITES
    for defense in (
        [
            *(path.parent.parent / "defenses" / OWN[own] for own in OWN if own in path.stem),
            *(PLAIN if "graybox" in path.stem or not any(own in path.stem for own in OWN) else []),
        ]
        if "DEFENSE" in command(path)
        else [None]
    )
]


@pytest.mark.long
@pytest.mark.parametrize("path,defense", RUNS, ids=[f"{p.stem}-{d.stem}" if d else p.stem for p, d in RUNS])
def test_suite_runs_as_its_header_says(
    path: Path, defense: Path | None, checkpoint: Path, cut: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = run(command(path), checkpoint, tmp_path / "out", defense)
    known = set(entries(path))
    assert {attack["name"] for attack in results["attacks"]} == known
    asked = {attack["name"] for attack in results["attacks"] if attack["forwards"] > 0}
    silent = {name for name in known if name in CORRUPTIONS or "graybox" in name}
    assert known - asked <= silent
    assert not any("graybox" in name for name in asked)
    assert (tmp_path / "out" / "report.md").exists()


@pytest.mark.long
@pytest.mark.parametrize("path", [p for p in SUITES if whole(p) != p.read_text()], ids=lambda p: p.stem)
def test_rows_for_people_with_more_files(
    path: Path, checkpoint: Path, cut: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They parse beside the others, and those that need no more than a checkpoint run."""
    text = re.sub(r"\b(OWN|OTHER|DAE)\.ckpt", str(checkpoint), whole(path))
    blocks = re.split(r"^(?=[\w.]+:)", re.sub(r"^#.*\n", "", text, flags=re.M), flags=re.M)[1:]
    rows = [block for block in blocks if not names(block) <= names(path.read_text())]
    assert rows and len(set(blocks)) == len(names(text)) == len(blocks)
    (tmp_path / "rows.yaml").write_text("".join(rows))
    words = ["--checkpoint", str(checkpoint), "--suite", str(tmp_path / "rows.yaml"), "--output", str(tmp_path / "out")]
    parser = evaluate.options()
    suite = parser.instantiate(parser.parse_args(words)).suite
    assert set(suite) == names("".join(rows))
    transfers = [block for block in rows if "class_path: Transfer" in block]
    if transfers:
        (tmp_path / "rows.yaml").write_text("".join(transfers))
        results = run(words, checkpoint, tmp_path / "out", None)
        assert {attack["name"] for attack in results["attacks"]} == names("".join(transfers))


@pytest.mark.parametrize("path", SUITES, ids=lambda p: p.stem)
def test_suite_is_a_document(path: Path) -> None:
    header = "\n".join(line for line in path.read_text().splitlines() if line.startswith("# "))
    table = re.search(r"_table(\d)", path.stem)
    assert not table or re.search(rf"Table {table[1]}\b", header.splitlines()[0])
    for part in ("command", "cost", *(("expected", "departures") if table else ())):
        assert re.search(rf"^# {part}\b.*:", header, re.M), part


def test_every_attack_is_in_a_suite() -> None:
    text = "".join(whole(path) for path in SUITES)
    text += "".join((ROOT / "configs" / "suites" / name).read_text() for name in set(re.findall(r": (\.\./\S+)", text)))
    named = set(re.findall(r"class_path: (\w+)", text))
    known = {c.__name__ for c in catalogue(attacks) if issubclass(c, Attack) and c is not Attack}
    assert known - named == set()


@pytest.mark.long
def test_a_suite_at_mnists_radii_says_so() -> None:
    """Its name, unless it is a paper's table or the quickstart's: linf 0.3 says nothing about colour images."""
    for path in SUITES:
        radii = [eps for norm, eps in map(threat, entries(path).values()) if norm == "linf" and eps is not None]
        if max(radii, default=0) > 0.1:
            assert re.search("mnist|digits|quick|_table[1-6]", path.stem), path.stem


@pytest.mark.parametrize("purifier", [defenses.RandomQuantizer(levels=4, std=0.1), defenses.MeanFilter()])
def test_bpda_is_what_the_rows_called_bpda_were(purifier: defenses.Purifier) -> None:
    """Until version 0.2 they were ReconstructionPGD of weight 0: the same images to the last bit."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    purified = defenses.Purified(net, purifier)
    x, y = torch.rand(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])
    settings: dict[str, Any] = {"eps": 0.3, "steps": 5, "step_size": 0.05, "eot_samples": 3}
    before = attacks.ReconstructionPGD(**settings, reconstruction_weight=0, bpda=True)
    now = attacks.BPDA(attacks.PGD(**settings))
    noise = [attacks.Noise.keyed(0, torch.arange(5)) for _ in range(2)]
    assert torch.equal(before(purified, x, y, noise[0]), now(purified, x, y, noise[1]))
