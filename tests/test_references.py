"""Every citation resolves in docs/references.bib, and every method, attack, defense and detector cites its paper."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest
from references import ROOT, SOURCE, citations, one_line, read_references, references, searched, without_year

from adversarial_lightning import attacks, defenses, detectors, lightning_modules
from adversarial_lightning.checkpoints.spec import catalogue

PAPERS = {reference.citation: reference for reference in references()}
BASES = {
    lightning_modules: lightning_modules.TrainingMethod,
    attacks: attacks.Attack,
    defenses: defenses.Purifier,
    detectors: detectors.Detector,
}
CLASSES = {c for room, base in BASES.items() for c in catalogue(room) if issubclass(c, base) and c is not base}
BASE_CLASSES = {lightning_modules.Classifier, lightning_modules.LossClassifier}
WITHOUT_PAPER = {
    *("Standard", "GaussianNoise", "SaltAndPepper", "MeanFilter"),  # textbook
    *("Restarts", "Sweep", "Targeted", "Within", "WorstOf"),  # attacks made of others
    "RandomQuantizer",  # an example of a stochastic defense that is not differentiable
}
CLASSES -= BASE_CLASSES
# What the project reproduces: authors, title and year stand in the file's docstring.
METHODS = {c for c in CLASSES if issubclass(c, lightning_modules.TrainingMethod)} - {lightning_modules.Standard}
REPRODUCED = [
    *sorted({c.__module__.removeprefix("adversarial_lightning.") for c in METHODS}),
    *("attacks.langevin", "attacks.pdpgd", "attacks.high_confidence", "networks.er_classifier"),
    *("defenses.malade", "defenses.magnet", "defenses.ride", "defenses.total_variation"),
    *("detectors.er_detector", "detectors.kernel_density", "detectors.lid", "detectors.max_probability"),
    *("detectors.reconstruction_error", "detectors.score_norm"),
]
TITLE = re.compile(r'([\w\'’ ,-]+), "([A-Z][^"]{20,})",[^".]*?\b((?:19|20)\d\d)\b')


def docstrings(path: Path) -> list[str]:
    """Every docstring of a Python file, each on one line."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    found = [ast.get_docstring(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]
    return [one_line(text) for text in found if text]


@pytest.mark.parametrize(
    "text,expected",
    [
        ("PGD (Madry et al. 2018)", ["Madry et al. 2018"]),
        ("Madry et al. (2018)", ["Madry et al. 2018"]),
        ("Croce and Hein 2020a, Algorithm 1", ["Croce and Hein 2020a"]),
        ("(Croce\n    and Hein 2020a; Chambolle 2004)", ["Croce and Hein 2020a", "Chambolle 2004"]),
        ("# (Athalye et al.\n# 2018a)", ["Athalye et al. 2018a"]),
        ("Moosavi-Dezfooli et al. 2016", ["Moosavi-Dezfooli et al. 2016"]),
        ("Tramèr and Boneh 2019", ["Tramèr and Boneh 2019"]),
        ("CCS 2017, NIPS 2017, Nanyang Technological University, 2020", []),
    ],
)
def test_a_citation_is_found(text: str, expected: list[str]) -> None:
    assert citations(text) == expected


def test_a_later_mention_may_leave_out_the_year() -> None:
    assert without_year("Li et al. 2021 ... Li et al., Table 4") == []
    assert without_year("as Li et al. say; Ma et al. 2018") == ["Li"]


@pytest.mark.parametrize("path", searched(), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_citation_resolves(path: Path) -> None:
    text = path.read_text()
    assert set(citations(text)) <= set(PAPERS), "write it as docs/references.bib has it, or add the paper there"
    assert not without_year(text), "no year in this file"


def test_every_paper_is_cited() -> None:
    cited = {citation for path in searched() for citation in citations(path.read_text())}
    assert set(PAPERS) - cited == set()


def test_a_citation_means_one_paper() -> None:
    entries = references()
    assert len(entries) == len(PAPERS) == len({r.key for r in entries}) == SOURCE.read_text().count("\n@")
    assert len({r.fields["title"].lower() for r in entries}) == len(entries)
    # A letter only where it tells two papers apart.
    plain = [re.sub(r"[a-z]$", "", citation) for citation in PAPERS]
    assert all((plain.count(p) > 1) == (p != citation) for p, citation in zip(plain, PAPERS, strict=True))


@pytest.mark.parametrize("citation", PAPERS)
def test_an_entry_is_complete(citation: str) -> None:
    fields = PAPERS[citation].fields
    assert fields["title"] and re.fullmatch(r"(19|20)\d\d", fields["year"])
    assert re.fullmatch(r"\w[\w\-]*.*", fields["author"]) and all("," in a for a in fields["author"].split(" and "))
    assert ("eprint" in fields) == ("eprinttype" in fields)
    assert re.fullmatch(r"\d{4}\.\d{4,5}|[a-z-]+/\d{7}", fields.get("eprint", "1706.06083"))
    assert re.fullmatch(r"10\.\d{4,}/\S+", fields.get("doi", "10.1000/x"))
    assert all(re.fullmatch(r"https://\S+", fields.get(key, "https://x")) for key in ("url", "code"))
    if number := re.match(r"\d\d", fields.get("eprint", "")):  # the preprint is not younger than the paper
        assert 2000 + int(number[0]) <= int(fields["year"])


def test_an_entry_that_cannot_be_read_is_an_error() -> None:
    good = "@misc{ma2018,\n  author = {Ma, Xingjun and Li, Bo},\n  year = {2018},\n}\n"
    assert [r.citation for r in read_references(good)] == ["Ma and Li 2018"]
    with pytest.raises(ValueError, match=r"one .* a line in @misc\{ma2018"):
        read_references(good.replace("{2018},", "2018,"))


@pytest.mark.parametrize("cls", sorted(CLASSES, key=lambda c: c.__name__), ids=lambda c: c.__name__)
def test_what_has_a_paper_cites_it(cls: type) -> None:
    """In the docstring of its module or of itself."""
    cited = citations(f"{inspect.getmodule(cls).__doc__} {cls.__doc__}")
    assert bool(cited) != (cls.__name__ in WITHOUT_PAPER)
    assert set(cited) <= set(PAPERS)


@pytest.mark.parametrize("module", REPRODUCED)
def test_a_reproduced_paper_has_its_title_in_the_file(module: str) -> None:
    assert TITLE.search(one_line(importlib.import_module(f"adversarial_lightning.{module}").__doc__ or ""))


def test_authors_title_and_year_are_those_of_the_references() -> None:
    found = 0
    for path in (p for p in searched() if p.suffix == ".py" and "tests" not in p.parts):
        for authors, title, year in (m for text in docstrings(path) for m in TITLE.findall(text)):
            (paper,) = [r for r in PAPERS.values() if r.fields["title"].lower().startswith(title.lower())]
            *others, last = paper.surnames
            names = f"{', '.join(others)} and {last}" if others else last
            assert authors.strip() in (names, f"{paper.surnames[0]} et al.") or authors.endswith(f" {names}"), path
            assert year == paper.fields["year"], path
            found += 1
    assert found >= 25
