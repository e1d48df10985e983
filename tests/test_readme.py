"""What the documents say is what the code and the recorded results are."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("readme_tables", ROOT / "docs" / "readme_tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_tables_are_up_to_date() -> None:
    documents = generator()
    for document in documents.DOCUMENTS:
        text = document.read_text()
        assert documents.filled(document, text) == text, "run make readme"


def test_a_stale_table_is_noticed() -> None:
    document = ROOT / "README.md"
    text, filled = document.read_text(), generator().filled
    stale = text.replace("| ATENT ", "| ATENTION ")
    assert stale != text and filled(document, stale) == text
    with pytest.raises(ValueError, match="once each"):
        filled(document, text.replace("<!-- attacks: end -->", ""))


def test_every_experiment_is_listed_with_its_method_and_data() -> None:
    rows = [line.split(" | ") for line in generator().experiments()[2:]]
    assert len(rows) == len(list((ROOT / "configs" / "experiments").rglob("*.yaml")))
    assert all(len(row) == 4 and all(cell.strip(" |") for cell in row) for row in rows)


@pytest.mark.parametrize(
    "document", ["README.md", "CONTRIBUTING.md", "results/QUEUE.md", "configs/experiments/README.md"]
)
def test_links_and_named_files_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    named = re.findall(r"`((?:configs|docs|tests|benchmarks|results)/[\w./-]+\.(?:yaml|py|md))`", text)
    base = (ROOT / document).parent
    named = [p for p in named if "NAME" not in p]  # templates
    missing = [p for p in links if not (base / p).exists()] + [p for p in named if not (ROOT / p).exists()]
    assert not missing and (links or named)


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


def test_seeds_of_a_row_stand_as_mean_and_deviation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = generator()
    monkeypatch.setattr(documents, "RESULTS", tmp_path)
    attack = {"name": "pgd", "norm": "linf", "eps": 0.1, "restarts": 1, "relative_norm": None}
    for name, accuracy in (("vat", 0.6), ("vat/seed_1", 0.7), ("vat/seed_2", 0.8), ("at", 0.5)):
        r = {"clean_accuracy": 1.0, "n": 9, "seed": 0, "worst_case": []}
        r["attacks"] = [{**attack, "robust_accuracy": accuracy, "relative_norm": accuracy}]
        folder = tmp_path / "thesis" / name
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps(r))
        (folder / "run.json").write_text(json.dumps({"machine": "m", "date": "d", "note": f"about {name}"}))
    text = "\n".join(documents.results())
    rows = {line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]] for line in text.splitlines()[2:7]}
    assert rows["pgd (linf 0.1, 1 x)"] == ["50.0", "70.0 ± 10.0"]
    assert rows["rho under pgd"] == ["0.500", "0.700 ± 0.100"]
    assert "over trainings, vat 3." in text and "vat: about vat\n" in text and "seed_1" not in text


def test_pgd_is_explained_in_250_lines() -> None:
    """Lines of code, without blank lines and docstrings, of all that PGD needs (the keyed noise not counted)."""
    files = ["pgd", "core/base", "core/norms", "core/objectives", "core/gradient"]
    text = "\n".join((ROOT / "attacks" / f"{name}.py").read_text() for name in files)
    code = re.sub(r'"""[\s\S]*?"""', "", text)
    assert len([line for line in code.splitlines() if line.strip()]) <= 250
