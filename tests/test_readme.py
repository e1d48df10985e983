"""What the documents say is what the code and the recorded results are."""

import importlib.util
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import adversarial_lightning
from adversarial_lightning.checkpoints.spec import catalogue
from adversarial_lightning.cli.configs import find
from adversarial_lightning.reproduce.record import without_arrays, written

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
DOCUMENTS += sorted(
    str(p.relative_to(ROOT)) for room in ("docs", "results", "configs") for p in (ROOT / room).rglob("*.md")
)
RETIRED = r"withst\w+|twins?|fragments?"  # others: tests/test_structure.py


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.long
def test_generated_tables_are_up_to_date() -> None:
    documents = generator()
    for document in documents.DOCUMENTS:
        text = document.read_text()
        assert documents.filled(document, text) == text, "run make readme"
    for path, page in documents.pages().items():
        assert path.read_text() == page, "run make readme"


@pytest.mark.long
def test_a_stale_table_is_noticed() -> None:
    document = ROOT / "README.md"
    text, filled = document.read_text(), generator().filled
    stale = text.replace("| [ATENT]", "| [ATENTION]")
    assert stale != text and filled(document, stale) == text
    with pytest.raises(ValueError, match="once each"):
        filled(document, text.replace("<!-- methods: end -->", ""))


def test_the_readme_is_short() -> None:
    assert (ROOT / "README.md").stat().st_size <= 12_000
    assert (ROOT / "docs" / "overview.svg").stat().st_size <= 150_000


def test_the_readme_runs() -> None:
    """Its lines of Python, on a small model; its commands name configurations that exist."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    x, y = torch.rand(4, 1, 8, 8), torch.arange(4)
    names: dict[str, Any] = {"model": nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "x": x, "y": y}
    exec(code, names)
    assert len([line for line in code.splitlines() if line]) <= 5
    assert 0 < (names["x_adv"] - x).abs().max() <= 8 / 255 + 1e-6 and 0 <= names["robust_accuracy"] <= 1


@pytest.mark.parametrize(
    "document",
    ["README.md", "docs/multi_gpu.md", "docs/catalogue.md", "results/benchmarks/on_gpus.md"],
)
def test_commands_name_configurations_that_exist(document: str) -> None:
    text = re.sub(r"\\\n", " ", (ROOT / document).read_text())
    named = re.findall(r"(--(?:config|suite|data|defenses|detector)) ([a-z][\w./]*[\w])(?![\w./$])", text)
    for option, name in named:
        assert Path(find(option, name)).exists() or (ROOT / name).exists(), (option, name)
    assert named or document == "docs/catalogue.md"


@pytest.mark.parametrize("room", adversarial_lightning.ROOMS)
def test_tables_say_whole_sentences(room: str) -> None:
    """The first line of Auto-PGD's docstring ends in mid-sentence, and so did its row."""
    first_sentence, module = generator().first_sentence, getattr(adversarial_lightning, room)
    for documented in [d for cls in catalogue(module) for d in (cls, inspect.getmodule(cls))]:
        said = first_sentence(documented)
        paragraph = " ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split())
        assert said and paragraph.startswith(said), documented
        assert re.fullmatch(r"(\.( .*)?)?", paragraph.removeprefix(said)), (documented, said)
        assert all(said.count(a) == said.count(b) for a, b in ("()", "[]", "{}")) and said.count('"') % 2 == 0, said


def test_a_sentence_does_not_end_at_an_abbreviation() -> None:
    def documented() -> None: ...

    documented.__doc__ = (
        'The network of Srinivasan et al. 2021 (app. B.3),\nas in "Mind the box" (Fig. A).  Its width is 8.\n\nMore.'
    )
    assert generator().first_sentence(documented) == (
        'The network of Srinivasan et al. 2021 (app. B.3), as in "Mind the box" (Fig. A)'
    )


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if d != "CHANGELOG.md" and not d.startswith("configs")])
def test_retired_words_are_gone(document: str) -> None:
    text = re.sub(r"<!-- names on disk -->.*?<!-- end -->", "", (ROOT / document).read_text(), flags=re.S)
    assert not re.findall(rf"\b(?:{RETIRED})\b", text, re.I)


def test_every_experiment_is_listed_with_its_method_and_data() -> None:
    rows = [line.split(" | ") for line in generator().experiments()[2:]]
    assert len(rows) == len(list((ROOT / "configs" / "experiments").rglob("*.yaml")))
    assert all(len(row) == 4 and all(cell.strip(" |") for cell in row) for row in rows)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_named_files_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^):#][^):]*)\)", text)]
    named = re.findall(r"`((?:configs|docs|tests|benchmarks|results)/[\w./-]+\.(?:yaml|py|md))`", text)
    base = (ROOT / document).parent
    named = [p for p in named if "NAME" not in p]  # templates
    if document == "CHANGELOG.md":
        named = []  # it names files of old
    missing = [p for p in links if not (base / p).exists()] + [p for p in named if not (ROOT / p).exists()]
    assert not missing


def test_recorded_results_are_complete() -> None:
    """Every recorded run has its configuration, figures, seed, machine kind and date, and no path of a machine."""
    folders = [p.parent for p in (ROOT / "results").rglob("results.json")]
    assert folders
    for folder in folders:
        results = json.loads((folder / "results.json").read_text())
        about = json.loads((folder / "run.json").read_text())
        config = (folder / "config.yaml").read_text()
        assert results["schema"] in (1, 2) and results["n"] > 0 and results["attacks"]
        assert {"date", "machine", "versions", "epoch", "note"} == set(about)
        assert re.search(r"^seed_everything: \d+", config, re.M)
        assert not re.search(r"[: ]/\w", config + json.dumps(results["data"]))
        assert (folder / "results.json").read_text() == written(without_arrays(results)), "record strips large arrays"


def test_recording_takes_away_nothing_but_arrays() -> None:
    curve = {"eps": [0.0, 0.1], "robust_accuracy": [1.0, 0.25]}
    detection = {"auroc": 0.5, "roc": {"fpr": [0.0, 1.0], "tpr": [0.0, 1.0]}, "levels": [{"fpr": 0.05}]}
    attack = {"robust_accuracy": 0.25, "interval": [0.1, 0.4], "curve": curve, "detection": detection}
    whole = {"n": 2, "clean_accuracy": 1.0, "attacks": [attack, {"robust_accuracy": 0.5}], "worst_case": [attack]}
    kept = without_arrays(whole)
    left = {"eps": [0.0], "robust_accuracy": [1.0]}
    entry = {**attack, "curve": left, "detection": {"auroc": 0.5, "levels": [{"fpr": 0.05}]}}
    assert kept == {**whole, "attacks": [entry, {"robust_accuracy": 0.5}], "worst_case": [entry]}
    assert attack["curve"] is curve and "roc" in detection
    assert json.loads(written(kept)) == kept and '"interval": [0.1, 0.4]' in written(kept)
    assert json.loads(written({"a": ["x, [1,\n2]", "]"]})) == {"a": ["x, [1,\n2]", "]"]}


def test_seeds_of_a_row_become_mean_and_deviation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = generator()
    monkeypatch.setattr(documents, "RESULTS", tmp_path)
    attack = {"name": "pgd", "norm": "linf", "eps": 0.1, "restarts": 1, "relative_norm": None}
    for name, accuracy in (("vat", 0.6), ("vat/seed_1", 0.7), ("vat/seed_2", 0.8), ("at", 0.5)):
        r = {"schema": 3, "clean_accuracy": 1.0, "n": 9, "seed": 0, "worst_case": []}
        r["samples"] = {"chosen": "all", "seed": None, "n": 9, "of": 9}
        r["attacks"] = [{**attack, "robust_accuracy": accuracy, "relative_norm": accuracy, "failed": 2}]
        folder = tmp_path / "thesis" / name
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(r))
        (folder / "run.json").write_text(json.dumps({"machine": "m", "date": "d", "note": f"about {name}"}))
    text = "\n".join(documents.results())
    rows = {line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in text.splitlines()[2:7]}
    assert rows["pgd (linf 0.1, 1 x)"] == ["50", "70 ± 10"]
    assert rows["rho under pgd"] == ["0.50 (2 not found)", "0.70 ± 0.10"]
    assert "over trainings, vat 3." in text and "**vat**: about vat\n" in text and "seed_1" not in text
    assert "| 9 + 9 + 9 " in text
