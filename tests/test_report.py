"""What people read: numbers in every format, figures, pictures, event file, comparison; pages in a real browser."""

import base64
import json
import os
import re
import shutil
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import Shift, campaign, save, trained
from PIL import Image

from adversarial_lightning.attacks import DDN, FGSM, FMN, PGD, Attack, Restarts
from adversarial_lightning.cli import evaluate, main
from adversarial_lightning.defenses import Purified, RandomQuantizer
from adversarial_lightning.evaluation import run_campaign, write_comparison
from adversarial_lightning.evaluation.campaign.ledger import columns
from adversarial_lightning.evaluation.campaign.plan import Campaign
from adversarial_lightning.evaluation.campaign.sample_status import AttackRun
from adversarial_lightning.evaluation.outcomes.outcome import Outcome
from adversarial_lightning.evaluation.outcomes.statistics import bitmap_of, flags_of
from adversarial_lightning.evaluation.report.after_audit import claim_words
from adversarial_lightning.evaluation.report.class_table import class_table
from adversarial_lightning.evaluation.report.comparison import compare
from adversarial_lightning.evaluation.report.comparison_text import side_by_side
from adversarial_lightning.evaluation.report.figures import DARK, ReportFigure, confusion, curves
from adversarial_lightning.evaluation.report.formatting import (
    duration,
    facts_of_cost,
    length,
    percent,
    radius,
    settings,
)
from adversarial_lightning.evaluation.report.html import report_page
from adversarial_lightning.evaluation.report.markdown import headlines, report_text
from adversarial_lightning.evaluation.report.pictures import EACH, galleries, pick
from adversarial_lightning.evaluation.report.stored_results import upgraded
from adversarial_lightning.evaluation.report.subject import PIXELS
from adversarial_lightning.evaluation.report.successes import Successes, gather
from adversarial_lightning.evaluation.report.write import scalars

ROOT = Path(__file__).resolve().parent.parent
SUITE = """
fgsm: {class_path: FGSM, init_args: {eps: 0.1}}
pgd: {class_path: Restarts, init_args: {n: 2, attack: {class_path: PGD, init_args: {eps: 0.1, steps: 5}}}}
pgd_small: {class_path: PGD, init_args: {eps: 0.03, steps: 5}}
ddn: {class_path: DDN, init_args: {steps: 20}}
gaussian: {class_path: GaussianNoise}
"""
FOREIGN = "events.out.tfevents.1.host.1.0"


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished evaluations, one and two, of 60 and 40 digits; one was run twice, beside somebody's event file."""
    folder = tmp_path_factory.mktemp("evaluated")
    save(folder / "a.ckpt")
    (folder / "suite.yaml").write_text(SUITE)
    (folder / "one").mkdir()
    (folder / "one" / FOREIGN).write_text("somebody else's")
    for name, limit in (("one", 60), ("one", 60), ("two", 40)):
        options = {"checkpoint": "a.ckpt", "suite": "suite.yaml", "output": name}
        argv = [f"--{option}={folder / value}" for option, value in options.items()]
        assert evaluate.main([*argv, f"--limit={limit}", "--accelerator=cpu", "--audit=none"]) == 0
    write_comparison([folder / "one", folder / "two"], folder / "compare")
    return folder


def results_of(folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results


class Page(HTMLParser):
    """What a page asks of others, its images, headings and tables; raises where tags are not closed in order."""

    VOID = frozenset({"meta", "link", "img", "br", "source"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.mark.long
@pytest.mark.parametrize("name", ["one/report.html", "compare/compare.html"])
def test_pages_are_whole_and_accessible(name: str, evaluated: Path) -> None:
    text = (evaluated / name).read_text()
    page = Page(text)
    asked = [a[key] for _, a in page.tags for key in ("src", "srcset", "href", "action", "data") if a.get(key)]
    assert all(str(target).startswith(("data:", "#")) for target in asked)
    assert "url(" not in text and "@import" not in text and not page.all("script")
    assert {str(a.get("id")) for _, a in page.tags} >= {str(a["href"])[1:] for a in page.all("a")}
    assert all(a["alt"] for a in page.all("img")) and all(a.get("scope") for a in page.all("th"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
    boxes = [a for a in page.all("div") if a.get("class") == "scroll"]
    assert len(boxes) == len(page.all("table")) > 0
    assert all(a.get("aria-label") and a.get("tabindex") == "0" for a in boxes)  # scrolled by keyboard, too


def test_every_format_says_the_same(evaluated: Path) -> None:
    """Headline, interval, every attack and worst case: page, text, terminal and TensorBoard."""
    results, page = results_of(evaluated / "one"), Page((evaluated / "one/report.html").read_text()).words
    text = (evaluated / "one/report.md").read_text()
    assert len(headlines(results)) == len(results["worst_case"]) == 2
    assert all(f"**{sentence}**" in text for sentence in headlines(results))
    for entry in (*results["attacks"], *results["worst_case"]):
        if entry.get("median_norm") is None:
            share = percent(entry["robust_accuracy"], 60)
            low, high = (100 * bound for bound in entry["interval"])
            for said in (page, text):
                assert re.search(rf"{re.escape(share)}[\s|]*\[{low:.0f}, {high:.0f}\]", said), entry
        assert entry.get("name", "worst case") in page
    assert f"{results['attacks'][3]['median_norm']:.2g}" in page
    for fact in (
        results["checkpoint"]["sha256"],
        results["data"]["fingerprint"],
        "--limit=60",
        "PGD(norm=linf, eps=0.1",
    ):
        assert fact in page, fact


AUDITS: dict[str, tuple[dict[str, Any] | None, str]] = {
    "none": (None, "not audited"),
    "passed": (
        {
            **{"level": "quick", "state": "passed", "bound": 0.069, "claims": []},
            "checks": [
                {
                    "id": "C3",
                    "name": "iterative",
                    "verdict": "passed",
                    "figure": 0.0,
                    "limit": 0.2,
                    "sentence": "Good.",
                },
                {"id": "C8", "name": "transfer", "verdict": "not applicable", "figure": None, "limit": None}
                | {"sentence": "No surrogate."},
            ],
        },
        "audit passed (level quick; at most 6.9 points could be missed)",
    ),
    "of version 0.1": (
        {
            "level": "quick",
            "checks": [
                {"id": "C3", "name": "iterative", "verdict": "pass", "figure": 0.1, "limit": 0.2, "sentence": "Good."},
            ],
        },
        "audited by version 0.1 (level quick): nothing failed",
    ),
    "failed": (
        {
            **{"level": "full", "state": "failed", "bound": 0.9, "claims": []},
            "checks": [
                {
                    "id": "C3",
                    "name": "iterative",
                    "verdict": "passed",
                    "figure": 0.1,
                    "limit": 0.2,
                    "sentence": "Good.",
                },
                {"id": "F4", "name": "zero gradients", "verdict": "failed", "figure": 0.5, "limit": 0.01}
                | {"sentence": "Half of the gradients vanish."},
                {"id": "C6", "name": "black box", "verdict": "failed", "figure": 0.3, "limit": 0.2, "sentence": "Bad."},
            ],
        },
        "audit failed: F4 zero gradients; C6 black box",
    ),
}
SECTIONS = ("curves", "lengths", "scores", "steps", "grids", "confusions", "views")
NOTHING: dict[str, list[ReportFigure]] = {name: [] for name in SECTIONS}


@pytest.mark.parametrize("case", AUDITS)
def test_the_audit_stands_beside_every_headline(case: str, evaluated: Path, tmp_path: Path) -> None:
    audit, said = AUDITS[case]
    results = {**results_of(evaluated / "one"), "audit": audit}
    if case == "failed":  # and broke nothing, so that nothing is known of the number
        end = ": audit failed: C6 black box — the number says nothing about this model; clean "
        assert all(end in s and f"**{s}" not in report_text(results, "") for s in headlines(results))
    else:
        assert all(sentence.endswith(f"; {said}") for sentence in headlines(results))
    page = report_page(results, "", NOTHING)
    cards = page[page.index('<div class="headlines">') : page.index("<nav")]
    assert cards.count(said) == 1  # one norm, two radii
    assert cards.count(": accuracy under") == cards.count("<h3>") == 2  # each number with its own name
    for check in (audit or {"checks": []})["checks"]:
        assert all(check["sentence"] in text for text in (page, report_text(results, "")))
    (tmp_path / "a").mkdir()
    (tmp_path / "a/results.json").write_text(json.dumps(results))
    comparison = compare([tmp_path / "a", evaluated / "two"])
    assert said in side_by_side(comparison)


def test_what_is_refused_has_no_headline_in_any_format(evaluated: Path) -> None:
    results = results_of(evaluated / "one")
    refused, other = sorted(results["worst_case"], key=lambda c: c["robust_accuracy"], reverse=True)
    refused["refused"] = "nobody averages <gradients>"
    assert len(headlines(results)) == 1 and f"linf {other['eps']:g}, pixels in [0, 1] " in headlines(results)[0]
    page = report_page(results, "", NOTHING)
    cards = page[page.index('<div class="headlines">') : page.index("<nav")]
    assert "no headline" in cards and "nobody averages &lt;gradients&gt;" in cards
    assert percent(refused["robust_accuracy"], 60) not in cards.split("Accuracy without")[0]
    share = re.escape(percent(refused["robust_accuracy"], 60))  # the number itself is listed, with a mark
    for said in (Page(page).words, report_text(results, "")):
        assert re.search(rf"worst case(\*\*)? †[^%]*{share}", said) and said.count("†: no headline") == 1


def audited(evaluated: Path, **changes: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Results of linf 0.1 and 0.03 after an audit, whose findings at 0.1 are `changes`; and the two worst cases."""
    results = results_of(evaluated / "one")
    large, small = results["worst_case"]
    nothing = {"broken_by_audit": 0, "examined_by_audit": 9, "estimate": None, "says_nothing": None}
    for case in (large, small):
        case |= {**nothing, "at_most": case["robust_accuracy"]}
    large |= changes
    gone = large["robust_accuracy"] - large["at_most"]
    for entry in results["classes"]:
        entry["at_most"] = [max(0.0, entry["robust_accuracy"][0] - gone), entry["robust_accuracy"][1]]
    checks = [{"id": "M1", "name": "a memory", "verdict": "failed", "sentence": "It remembers."}]
    results["audit"] = {"level": "quick", "state": "failed", "bound": 0.1, "claims": [], "checks": checks}
    return results, large, small


def test_what_the_audit_broke_is_taken_out_of_every_number(evaluated: Path, tmp_path: Path) -> None:
    before = results_of(evaluated / "one")["worst_case"][0]["robust_accuracy"]
    results, _, small = audited(evaluated, broken_by_audit=6, at_most=before - 0.1)
    left, whole = percent(before - 0.1, 60), percent(before, 60)
    assert left != whole and percent(small["robust_accuracy"], 60) != whole
    labelled = f"{whole} before the audit broke 6 of 9 robust samples"
    assert headlines(results)[0].startswith(f"at most {left} ") and labelled in headlines(results)[0]
    figures = curves(results)
    page, text = Page(report_page(results, "", NOTHING | {"curves": figures})).words, report_text(results, "")
    assert f"≤ {left}" in page and labelled in page
    assert re.search(rf"worst case\*\* +\| linf 0.1 +\| ≤ {re.escape(left)} +\| +\|", text)  # no interval: of another
    assert all(said.count("≤: the samples that the audit broke") == 1 for said in (page, text))
    (linf,) = [figure for figure in figures if figure.name == "curves/linf"]
    assert f"worst case, at most {left} at 0.1" in linf.alt and "before the audit" not in figures[1].alt
    assert f"worst case {whole}" not in linf.alt and "PGD at radii, before the audit" in labels(linf)
    numbers = scalars(results)
    assert numbers["worst_case_at_most/linf_0.1"] == before - 0.1 and "worst_case/linf_0.1" not in numbers
    assert numbers["worst_case_before_audit/linf_0.1"] == before
    assert numbers["worst_case/linf_0.03"] == small["robust_accuracy"]
    head, rows = class_table(results)
    assert head[3:] == ["linf 0.1, at most", "linf 0.03"]
    weakest = min(results["classes"], key=lambda e: (e["at_most"], e["clean_accuracy"], e["label"]))
    assert rows[0][3] == percent(weakest["at_most"][0], weakest["n"])
    (tmp_path / "a").mkdir()
    (tmp_path / "a/results.json").write_text(json.dumps(results))
    comparison = write_comparison([tmp_path / "a", evaluated / "one"], tmp_path / "c.html")
    cells = lines(comparison)["**worst case (linf 0.1)**"]
    assert cells[0].startswith(f"≤ {left} ‡") and cells[1].startswith(whole)
    drawings = compare([tmp_path / "a", evaluated / "one"]).drawings
    (worst,) = [drawing for drawing in drawings if drawing.name == "curves/linf/worst case"]
    assert labels(worst) == ["a, at most", "one"] and f"≤ {left}" in Page((tmp_path / "c.html").read_text()).words


def test_a_number_that_says_nothing_is_no_number_in_any_format(evaluated: Path, tmp_path: Path) -> None:
    results, large, small = audited(evaluated, says_nothing="M1 a memory")
    share = percent(large["robust_accuracy"], 60)
    first, second = headlines(results)
    assert "audit failed: M1 a memory — the number says nothing about this model" in first and share not in first
    assert percent(small["robust_accuracy"], 60) in second
    page, text = report_page(results, "", NOTHING | {"curves": curves(results)}), report_text(results, "")
    cards = page[page.index('<div class="headlines">') : page.index("<nav")].split("Accuracy without")[0]
    assert (
        "no number" in cards and "Audit failed: M1 a memory — the number says nothing" in cards and share not in cards
    )
    assert f"**{first}" not in text and first in text and f"**{second}**" in text
    for said in (Page(page).words, text):  # listed, with a mark
        assert re.search(rf"worst case(\*\*)? ✗[^%]*{re.escape(share)}", said) and said.count("✗: a check") == 1
    (linf,) = [figure for figure in curves(results) if figure.name == "curves/linf"]
    assert f"worst case {share}" not in linf.alt and "At 0.1 the audit failed" in linf.caption
    numbers = scalars(results)
    assert numbers["worst_case_audit_failed/linf_0.1"] == large["robust_accuracy"]
    assert "worst_case/linf_0.1" not in numbers and "worst_case/linf_0.03" in numbers
    assert class_table(results)[0][3:] == ["linf 0.1 ✗", "linf 0.03"]
    (tmp_path / "a").mkdir()
    (tmp_path / "a/results.json").write_text(json.dumps(results))
    comparison = write_comparison([tmp_path / "a", evaluated / "one"], tmp_path / "c.html")
    assert lines(comparison)["**worst case (linf 0.1)**"][0] == f"{share} ✗ ‡"
    assert all(said.count("✗: a check") == 1 for said in (comparison, (tmp_path / "c.html").read_text()))


def test_lengths_that_say_nothing_are_said_to() -> None:
    claim = {"norm": "l2", "eps": 0.5, "quantile": "median", "robust_accuracy": 0.5, "examined": 9, "broken": []}
    assert claim_words(claim, 20).endswith("robust; of 9 robust samples the audit broke 0")
    said = claim_words({**claim, "says_nothing": "M4 the clock"}, 20)
    assert said.startswith("audit failed: M4 the clock — ") and "50" not in said


def test_a_union_has_a_title_of_its_own_everywhere(evaluated: Path, tmp_path: Path) -> None:
    results = results_of(evaluated / "one")
    balls = [{"norm": "linf", "eps": 0.1}, {"norm": "l2", "eps": 0.5}]
    union = {**results["worst_case"][0], "norm": "union", "eps": None, "members": balls, "robust_accuracy": 0.05}
    results["worst_case"].append(union)
    results["attacks"].append({**results["attacks"][0], "name": "both", "norm": "union", "eps": None, "members": balls})
    for entry in results["classes"]:
        entry["robust_accuracy"].append(0.05)
    words = "the union of linf 0.1 and l2 0.5"
    text, page = report_text(results, ""), Page(report_page(results, "", NOTHING | {"curves": curves(results)})).words
    assert words in headlines(results)[-1] and text.count(words) >= 3 and "ℓ∞ ≤ 0.1 ∪ ℓ₂ ≤ 0.5" in page
    assert "worst_case/the_union_of_linf_0.1_and_l2_0.5" in scalars(results)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    table = lines(write_comparison([tmp_path / "a", tmp_path / "b"], None))
    assert table[f"both ({words})"][0].split()[0] == percent(results["attacks"][0]["robust_accuracy"], 60).split()[0]
    assert table[f"**worst case ({words})**"][0].startswith("5 %")
    assert list(table).index(f"both ({words})") < list(table).index("ddn (l2, median length)")


def labels(figure: ReportFigure) -> list[str]:
    return [text.get_text() for text in figure.figure.axes[0].get_legend().get_texts()]


# --- successes, pictures, figures -------------------------------------------------------------------------------------


def row(index: int, label: int, adversarial: int, linf: float = 0.1) -> Outcome:
    """One outcome of a sample that the model knew."""
    lengths = {"l0": 1, "l1": linf, "l2": linf, "linf": linf, "image_l2": 1.0, "score": None}
    classes = {"label": label, "clean": label, "adversarial": adversarial, "right_draws": int(label == adversarial)}
    return Outcome(index=index, **classes, **lengths, forwards=1.0, backwards=1.0, seconds=2.0)  # type: ignore[arg-type]


def test_successes_by_hand() -> None:
    """The second run breaks sample 1, the first 2, none 4, both 5; sample 3 is wrong only outside the ball."""
    sample, label = np.array([1, 2, 3, 4, 5]), np.array([0, 1, 2, 3, 4])
    first, second = AttackRun("a", 0, FGSM(eps=0.1)), AttackRun("b", 0, PGD(eps=0.1))
    ball = Successes("linf", 0.1, sample, label)
    ball.record(
        first, columns([row(1, 0, 0), row(2, 1, 7), row(3, 2, 8, 0.2), row(4, 3, 3), row(5, 4, 6), row(9, 1, 2)])
    )
    ball.record(second, columns([row(1, 0, 5), row(3, 2, 2), row(4, 3, 3), row(5, 4, 1)]))
    assert ball.run.tolist() == [1, 0, -1, -1, 0]
    assert ball.adversarial.tolist() == [5, 7, 2, 3, 6]
    assert ball.cost.tolist()[:2] == [1, 0] and ball.cost[4] == 0
    assert pick(ball) == {"broken": [1, 4, 0], "robust": [2, 3]}
    assert [ball.shown(i) for i in range(5)] == [1, 0, 0, 0, 0]  # both budget, the first broke more
    nearest = Successes("linf", None, sample, label)
    nearest.record(first, columns([row(1, 0, 3, 0.5), row(2, 1, 7, 0.2), row(3, 2, 2, 0), row(5, 4, 6, 0.3)]))
    nearest.record(second, columns([row(1, 0, 5, 0.4), row(2, 1, 8, 0.3), row(5, 4, 9, 0.9)]))
    assert nearest.run.tolist() == [1, 0, -1, -1, 0] and nearest.adversarial.tolist() == [5, 7, 2, 3, 6]
    mixed = Successes("linf", 0.1, sample, label)
    mixed.record(
        AttackRun("c", 0, FMN(norm="linf")), columns([row(2, 1, 7, 0.05), row(4, 3, 9, 0.7), row(5, 4, 6, 0.05)])
    )
    mixed.record(second, columns([row(4, 3, 3), row(1, 0, 5)]))
    assert mixed.run.tolist() == [1, 0, -1, -1, 0] and mixed.shown(3) == 1  # inside the ball before outside
    assert pick(nearest) == {"broken": [1, 4, 0]}  # by length; what was not found has no picture


def test_pick_takes_the_ends() -> None:
    n = 3 * EACH
    case = Successes("linf", None, np.arange(n), np.zeros(n, int))
    cost = np.random.default_rng(0).permutation(n) / n
    run = AttackRun("a", 0, FMN(norm="linf"))
    case.record(run, columns([row(i, 0, 1, float(cost[i])) for i in range(n)]))
    order = np.argsort(cost).tolist()
    assert pick(case) == {"easiest to break": order[:EACH], "hardest to break": order[::-1][:EACH]}
    few = Successes("linf", None, np.arange(EACH + 1), np.zeros(EACH + 1, int))
    few.record(run, columns([row(i, 0, 1, float(i)) for i in range(EACH + 1)]))
    assert pick(few) == {"easiest to break": list(range(EACH)), "hardest to break": [EACH]}  # nobody twice


ATTACKS: dict[str, Attack] = {
    "fgsm": FGSM(eps=0.1),
    "pgd": Restarts(PGD(eps=0.1, steps=5), n=2),
    "ddn": DDN(steps=10),
    "fmn": FMN(norm="linf", steps=10),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    c = campaign(tmp_path_factory.mktemp("campaign"), 40, ATTACKS)
    run_campaign(c, trained())
    return c


def test_pictures_show_what_the_ledgers_say(finished: Campaign) -> None:
    """Every example is attacked again alone, with another batch shape, and ends as recorded."""
    cases = gather(finished).cases
    assert [case.title for case in cases] == ["linf 0.1", "l2 nearest", "linf nearest"]
    shown, notes = galleries(finished, trained(), cases, allowance=60)
    assert not notes and [gallery.title for gallery in shown] == [case.title for case in cases]
    assert list(shown[0].rows) == ["easiest to break", "hardest to break", "robust"]
    rows = {
        (name, o.index, run.restart): o
        for name in ATTACKS
        for run in finished.runs(name)
        for o in finished.outcomes(run)
    }
    for case, gallery in zip(cases, shown, strict=True):
        for kind, examples in gallery.rows.items():
            assert 0 < len(examples) <= EACH
            for e in examples:
                position = case.sample.tolist().index(e.outcome.index)
                recorded = rows[e.attack, e.outcome.index, case.runs[case.shown(position)].restart]
                assert e.outcome.adversarial == recorded.adversarial == case.adversarial[position]
                for norm in ("l1", "l2", "linf"):  # of other random starts, other lengths
                    assert getattr(e.outcome, norm) == pytest.approx(getattr(recorded, norm), rel=1e-3)
                assert (e.outcome.adversarial == e.outcome.label) == (kind == "robust")
                length = (e.attacked - e.clean).abs().max() if case.norm == "linf" else (e.attacked - e.clean).norm()
                assert float(length) == pytest.approx(getattr(e.outcome, case.norm), abs=1e-4)
                clean, attacked, difference = (np.asarray(image, float) for image in e.images().values())
                assert np.abs(clean / 255 - e.clean[0].numpy()).max() < 0.01 and attacked.shape == (8, 8)
                assert difference.min() == 0 or difference.max() == 255  # stretched to its largest value
        pixels = gallery.pixels()
        assert pixels.dtype == np.uint8 and pixels.shape[2] == 3 and pixels.shape[1] % 60 == 0
    sources = shown[0].rows["robust"][0].sources()
    images = [Image.open(BytesIO(base64.b64decode(source.split(",")[1]))) for source in sources.values()]
    assert [image.size for image in images] == [(8, 8)] * 3


def test_pictures_of_a_stochastic_model_end_as_its_majority_did(tmp_path: Path) -> None:
    model = Purified(trained(), RandomQuantizer())
    c = replace(campaign(tmp_path, 40, {"pgd": PGD(eps=0.1, steps=3, eot_samples=2)}), draws=5)
    run_campaign(c, model)
    (shown,), notes = galleries(c, model, gather(c).cases, allowance=60)
    assert not notes and len(shown.rows) == 3


def test_a_robust_sample_is_shown_with_the_point_outside_the_ball(tmp_path: Path) -> None:
    """A sample that only a foreign attack tried: wrong, but too far away, and no deviation from the record."""
    c = campaign(tmp_path, 20, {"far": Shift(0.6, eps=0.1), "near": DDN(steps=10)})
    run_campaign(c, trained())
    shown, notes = galleries(c, trained(), gather(c).cases, allowance=60)
    assert not notes and [gallery.title for gallery in shown] == ["linf 0.1", "l2 nearest"]
    for e in shown[0].rows["robust"]:
        assert e.outside and e.size.endswith("outside the ball")
    others = [e for gallery in shown for name, row in gallery.rows.items() if name != "robust" for e in row]
    assert others and not any(e.outside for e in others)


def test_pictures_have_an_allowance(finished: Campaign) -> None:
    """The dearest runs are left out first, and named."""
    cases = gather(finished).cases
    shown, notes = galleries(finished, trained(), cases, allowance=0)
    assert shown == [] and len(notes) >= 3 and all("are left out" in note for note in notes)
    for case in cases:
        case.seconds = [100.0 if run.name == "ddn" else 0.001 for run in case.runs]
    shown, notes = galleries(finished, trained(), cases, allowance=1)
    assert len(notes) == 1 and re.fullmatch(r"\d examples under ddn are left out: .* about \d00 s\.", notes[0])
    assert [gallery.title for gallery in shown] == ["linf 0.1", "linf nearest"]


def test_a_model_that_changed_is_noticed(finished: Campaign) -> None:
    other = deepcopy(trained())
    for p in other.parameters():
        p.data.neg_()
    _, notes = galleries(finished, other, gather(finished).cases, allowance=60)
    assert "differ from the recorded outcome" in notes[-1] and "The cause is not known" in notes[-1]
    assert all(cause in notes[-1] for cause in ("rounding", "torch's global generator", "a model"))


def test_figures_are_the_same_file_again_and_dark_where_the_page_is(evaluated: Path) -> None:
    once, again = (curves(results_of(evaluated / "one")) for _ in range(2))
    assert [drawn.name for drawn in once] == ["curves/linf", "curves/l2"]
    for drawn, same in zip(once, again, strict=True):
        assert drawn.sources() == same.sources()
        light, dark = (base64.b64decode(source.split(",")[1]).decode() for source in drawn.sources())
        assert any(colour in light for colour in DARK) and not any(colour in dark for colour in DARK)
        assert "%" in drawn.alt and drawn.pixels().shape[2] == 3
    assert [float(v) for v in re.findall(r"worst case ([\d.]+) %", once[0].alt)] == [
        round(100 * c["robust_accuracy"])
        for c in sorted(results_of(evaluated / "one")["worst_case"], key=lambda c: c["eps"])
    ]


def test_confusions_by_hand() -> None:
    label = np.array([0, 0, 0, 1, 1, 2, 2])
    said = np.array([1, 1, 0, 2, 1, 2, -1])
    drawn = confusion("linf 0.1", "title", label, said)
    assert drawn is not None and drawn.caption == "title: most often 0 as 1 (2), 1 as 2 (1), 2 as not finite (1)."
    axes = drawn.figure.axes[0]
    cells = {(int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in axes.texts}
    assert cells == {(1, 2): "2", (1, 1): "1", (2, 3): "1", (2, 2): "1", (3, 3): "1", (3, 0): "1"}
    assert confusion("", "", label, label) is None
    named = confusion("linf 0.1", "title", label, said, ("cat", "dog"))  # fewer names than classes
    assert named is not None and named.caption == "title: most often cat as dog (2), dog as 2 (1), 2 as not finite (1)."
    assert [t.get_text() for t in named.figure.axes[0].get_yticklabels()] == ["not finite", "cat", "dog", "2"]
    many = np.arange(50)
    drawn = confusion("", "", many, np.roll(many, 1))
    assert drawn is not None and len(drawn.figure.axes[0].patches) == 10


# --- TensorBoard ------------------------------------------------------------------------------------------------------


def test_the_event_file_holds_the_report(evaluated: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert (evaluated / "one" / FOREIGN).read_text() == "somebody else's"
    (file,) = (evaluated / "one").glob("events.out.tfevents.*.evaluation")  # of the second run only
    events = EventAccumulator(str(file))
    events.Reload()
    results = results_of(evaluated / "one")
    expected = {"accuracy/clean": results["clean_accuracy"]}
    expected |= {f"accuracy_under/{a['name']}": a["robust_accuracy"] for a in results["attacks"]}
    expected |= {f"worst_case/linf_{c['eps']:g}": c["robust_accuracy"] for c in results["worst_case"]}
    tags = events.Tags()
    assert {tag: events.Scalars(tag)[0].value for tag in tags["scalars"]} == pytest.approx(expected)
    assert set(tags["images"]) >= {"curves/linf", "curves/l2", "lengths/l2", "examples/linf 0.1", "confusion/linf 0.1"}
    for tag in tags["images"]:
        image = Image.open(BytesIO(events.Images(tag)[0].encoded_image_string))
        assert min(image.size) > 50 and len(np.unique(np.asarray(image))) > 10
    (text,) = events.Tensors("headline/text_summary")
    assert headlines(results)[0] in text.tensor_proto.string_val[0].decode()


# --- side by side -----------------------------------------------------------------------------------------------------


SAMPLES = {"chosen": "random", "seed": 0, "n": 100, "of": 1000}


def bitmap(*right: int) -> str:
    """As in results.json: these many are robust, then as many not, and so on, of 100."""
    return bitmap_of(np.repeat(np.arange(len(right)) % 2 == 0, right))


def made(folder: Path, **changes: Any) -> Path:
    """A folder with a results.json of schema 3, by hand."""
    attack = {"norm": "linf", "eps": 0.1, "kind": "budget", "restarts": 1, "settings": {"steps": 5}}
    half = {"robust_accuracy": 0.5, "interval": [0.4, 0.6]}
    results = {
        **{
            "schema": 3,
            "samples": SAMPLES,
            "checkpoint": {"path": "a.ckpt", "sha256": "0"},
            "defenses": [],
            "mode": "full",
        },
        **{"data": {"class_path": "Digits", "init_args": {}, "fingerprint": "1"}, "n": 100, "seed": 0},
        **{"clean_accuracy": 0.9, "clean_interval": [0.8, 0.95], "invalid": 0, "sweeps": [], "cost": None},
        "attacks": [{**attack, **half, "name": "pgd"}],
        "worst_case": [{**half, "norm": "linf", "eps": 0.1, "attacks": ["pgd"], "claim": "robust accuracy"}],
        **{"audit": None, "warnings": [], **changes},
    }
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def lines(text: str) -> dict[str, list[str]]:
    """Cells of a markdown table by the label of their row."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return {cells[0]: cells[1:] for cells in rows}


def test_compare_by_hand(tmp_path: Path) -> None:
    nearest = {"name": "ddn", "norm": "l2", "eps": None, "kind": "minimum-norm", "restarts": 1, "robust_accuracy": 0.0}
    nearest |= {
        "interval": [0, 0.1],
        "attacked": 90,
        "found": 90,
        "curve": {"eps": [0, 1], "robust_accuracy": [0.9, 0]},
    }
    pgd = results_of(made(tmp_path / "x"))["attacks"][0]
    a = made(tmp_path / "a/evaluation", attacks=[{**pgd, "bitmap": bitmap(50, 50)}, {**nearest, "median_norm": 1.5}])
    b = made(
        tmp_path / "b/evaluation",
        attacks=[
            {**pgd, "robust_accuracy": 0.25, "bitmap": bitmap(25, 75)},
            {**nearest, "median_norm": None, "found": 20},
        ],
        worst_case=[{**results_of(a)["worst_case"][0], "robust_accuracy": 0.125, "eps": 0.2}],
    )
    table = lines(write_comparison([a, b], tmp_path / "out"))
    assert table["accuracy under"] == ["a", "b"]  # what tells the folders apart
    assert table["defense"] == ["no defense"] * 2 and list(table)[-4:] == ["model", "defense", "images", "audit"]
    assert table["clean"] == ["90 % [80, 95]", "90 % [80, 95]"]  # nobody is best
    assert table["pgd (linf 0.1)"] == ["**50 %** [40, 60]", "25 % [40, 60]"]
    assert table["**worst case (linf 0.1)**"] == ["50 % [40, 60]", ""]  # alone, best of nothing
    assert table["**worst case (linf 0.2)**"][1].startswith("12 %")
    assert table["ddn (l2, median length)"] == ["1.5 90 of 90 found", "∞ 20 of 90 found"]  # no test, no best
    assert list(table).index("ddn (l2, median length)") > list(table).index("**worst case (linf 0.2)**")
    page = Page((tmp_path / "out/compare.html").read_text())
    assert "12 %" in page.words and "1.5 90 of 90 found" in page.words and len(page.all("img")) == 1
    assert (tmp_path / "out/compare.md").read_text() == write_comparison([a, b], None)


def test_low_precision_without_a_radius_is_said(tmp_path: Path) -> None:
    """A suite of lengths alone has no threat model to compare in float32: the page says so."""
    results = {**results_of(made(tmp_path / "x")), "precision": {"attacks": "bf16", "compile": False, "cases": []}}
    results["cost"] = dict.fromkeys(("seconds", "wall_seconds", "processes", "forwards", "backwards", "peak_memory"), 0)
    results["cost"] |= {"energy": None}
    assert "without a radius, so not compared" in facts_of_cost(results)["attacks computed in"]


def test_a_curve_of_one_point_is_not_drawn(tmp_path: Path) -> None:
    """Recorded rows keep one point of a minimum-norm curve: a line needs two."""
    nearest = {"name": "ddn", "norm": "l2", "eps": None, "kind": "minimum-norm", "restarts": 1, "robust_accuracy": 0.0}
    nearest |= {"interval": [0, 0.1], "attacked": 90, "found": 90, "median_norm": 1.5}
    curves = {"one": ([0], [0.9]), "two": ([0, 1], [0.9, 0.0]), "three": ([0, 1, 2], [0.9, 0.5, 0.0])}
    folders = {
        name: made(tmp_path / name, attacks=[{**nearest, "curve": {"eps": eps, "robust_accuracy": accuracies}}])
        for name, (eps, accuracies) in curves.items()
    }
    for names, drawn in ((("one", "two"), 0), (("two", "three"), 1), (("one", "two", "three"), 1)):
        drawings = compare([folders[name] for name in names]).drawings
        assert len(drawings) == drawn
        assert not any("one " in drawing.alt for drawing in drawings)


def test_what_the_audit_broke_is_taken_out_and_what_is_no_robust_accuracy_is_marked(tmp_path: Path) -> None:
    case = results_of(made(tmp_path / "x"))["worst_case"][0]
    changes: tuple[dict[str, Any], ...] = ({"broken_by_audit": 3, "at_most": 0.4}, {"claim": "accuracy under pgd"})
    folders = [made(tmp_path / str(i), worst_case=[{**case, **change}]) for i, change in enumerate(changes)]
    text = write_comparison(folders, None)
    shares = [cell.split(" [")[0] for cell in lines(text)["**worst case (linf 0.1)**"]]
    assert "≤ 40 % [" not in text and "**≤" not in text  # the interval is of another number, and a bound is never best
    assert shares == ["≤ 40 %", "50 % ‡"] and "‡: accuracy under these attacks" in text


def test_what_is_refused_is_never_the_best(tmp_path: Path) -> None:
    case = results_of(made(tmp_path / "x"))["worst_case"][0]
    cases = ({"robust_accuracy": 0.9, "refused": "no EOT"}, {"robust_accuracy": 0.75}, {"robust_accuracy": 0.5})
    folders = [made(tmp_path / str(i), worst_case=[{**case, **changes}]) for i, changes in enumerate(cases)]
    text = write_comparison(folders, tmp_path / "c.html")
    shares = [cell.split(" [")[0] for cell in lines(text)["**worst case (linf 0.1)**"]]
    assert shares == ["90 % †", "**75 %**", "50 %"]
    page = (tmp_path / "c.html").read_text()
    assert all(said.count("†: no headline") == 1 for said in (text, page))


# what the worst case of two models says -> whether the first is bold
BOLD: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "the same samples, 25 more": ({"bitmap": bitmap(75, 25)}, {"bitmap": bitmap(50, 50)}, True),
    "the same samples, 5 more": ({"bitmap": bitmap(55, 45)}, {"bitmap": bitmap(50, 50)}, False),
    "10 more of the same, which decides": ({"bitmap": bitmap(60, 40)}, {"bitmap": bitmap(50, 50)}, True),
    "10 more, but on other samples": ({"bitmap": bitmap(60, 40)}, {"bitmap": bitmap(0, 50, 50)}, False),
    "10 more, not recorded which": ({"robust_accuracy": 0.6}, {"robust_accuracy": 0.5}, False),
    "30 more, not recorded which": ({"robust_accuracy": 0.8}, {"robust_accuracy": 0.5}, True),
    "refused": ({"bitmap": bitmap(75, 25), "refused": "no EOT"}, {"bitmap": bitmap(50, 50)}, False),
    "a failed audit": ({"bitmap": bitmap(75, 25), "audit": "fail"}, {"bitmap": bitmap(50, 50)}, False),
}


@pytest.mark.parametrize("case", BOLD)
def test_only_a_test_makes_a_number_bold(case: str, tmp_path: Path) -> None:
    *sides, bold = BOLD[case]
    folders = []
    for name, changes in zip("ab", sides, strict=True):
        changes = {**changes}
        checks = [{"id": "C3", "name": "x", "verdict": "fail", "sentence": ""}] if changes.pop("audit", None) else None
        if "bitmap" in changes:
            changes["robust_accuracy"] = float(flags_of(changes["bitmap"], 100).mean())
        case_ = {**HALF, "attacks": ["pgd"], **changes}
        audit = checks and {"level": "quick", "checks": checks}
        folders.append(made(tmp_path / name, worst_case=[case_], audit=audit))
    first, second = lines(write_comparison(folders, None))["**worst case (linf 0.1)**"]
    assert first.startswith("**") is bold and not second.startswith("**")


def test_samples_of_other_seeds_are_not_paired(tmp_path: Path) -> None:
    """10 of 100 more is significant on the same samples alone."""
    pair = [{**HALF, "attacks": ["pgd"], "robust_accuracy": k / 100, "bitmap": bitmap(k, 100 - k)} for k in (60, 50)]
    first = made(tmp_path / "a", worst_case=[pair[0]])
    for seed, bold in ((0, True), (1, False)):
        other = made(tmp_path / str(seed), worst_case=[pair[1]], samples={**SAMPLES, "seed": seed})
        cell = lines(write_comparison([first, other], None))["**worst case (linf 0.1)**"][0]
        assert cell.startswith("**") is bold


HALF = {"norm": "linf", "eps": 0.1, "robust_accuracy": 0.5, "interval": [0.4, 0.6]}
UNFAIR: dict[str, tuple[dict[str, Any], str]] = {
    "data": ({"data": {"class_path": "Digits", "init_args": {}, "fingerprint": "2"}}, "different data"),
    "samples": (
        {"samples": {**SAMPLES, "seed": 1}},
        "the samples differ (a random subset of 100 of 1,000 test images, sample seed 0; a random",
    ),
    "seed": ({"seed": 1}, "seed differs (0, 1)"),
    "mode": ({"mode": "worst_case"}, "mode differs (full, worst case)"),
    "settings": (
        {"attacks": [{**HALF, "name": "pgd", "restarts": 1, "settings": {"steps": 6}}]},
        "settings differ of pgd",
    ),
    "suite": ({"worst_case": [{**HALF, "attacks": ["x"]}]}, "worst case of linf 0.1 is over different attacks"),
}


@pytest.mark.parametrize("case", UNFAIR)
def test_unlike_evaluations_are_compared_with_care(case: str, tmp_path: Path) -> None:
    changes, said = UNFAIR[case]
    first, alike = made(tmp_path / "first"), made(tmp_path / "alike")
    assert "unfair" not in write_comparison([first, alike], None)
    text = write_comparison([first, made(tmp_path / "other", **changes)], tmp_path / "c.html")
    assert "unfair" in text and said in text and said in Page((tmp_path / "c.html").read_text()).words


def test_recorded_runs_are_read() -> None:
    folders = [path.parent for path in sorted((ROOT / "results").glob("*/*/results.json"))]
    table = lines(write_comparison(folders, None))
    for i, folder in enumerate(folders):
        r = results_of(folder)
        assert percent(r["clean_accuracy"], r["n"]) in table["clean"][i]
        for case in r["worst_case"]:
            cell = table[f"**worst case ({case['norm']} {radius(case['eps'])})**"][i]
            assert percent(case["robust_accuracy"], r["n"]) in cell and "[" not in cell
        assert table["images"][i] == f"the first {r['n']:,} test images"


# All that schema 1 said.
SCHEMA_1: dict[str, Any] = {
    **{"schema": 1, "checkpoint": {"path": "a/best.ckpt", "sha256": "0"}, "n": 1000, "seed": 0, "clean_accuracy": 0.9},
    **{"data": {"class_path": "datamodules.MNIST", "init_args": {"test_limit": None}}, "defenses": []},
    "attacks": [
        {"name": "pgd", "norm": "linf", "eps": 0.3, "robust_accuracy": 0.25, "n": 1000, "restarts": 1}
        | {"forwards": 10, "backwards": 10, "seconds": 1.5},
        {"name": "ddn", "norm": "l2", "eps": None, "robust_accuracy": 0.0, "n": 1000, "restarts": 1, "found": 900}
        | {"mean_norm": 1.25, "median_norm": 1.5, "curve": {"eps": [0, 2], "robust_accuracy": [0.9, 0]}}
        | {"forwards": 10, "backwards": 10, "seconds": 1.5},
    ],
    "worst_case": [{"norm": "linf", "eps": 0.3, "robust_accuracy": 0.25, "attacks": ["pgd"]}],
    "warnings": ["no headline for linf 0.3: nobody averages"],
}


def test_schema_1_is_read(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old/results.json").write_text(json.dumps(SCHEMA_1))
    table = lines(write_comparison([tmp_path / "old", made(tmp_path / "new")], None))
    assert table["pgd (linf 0.3)"][0] == "25.0 %"  # the first images are no sample: no interval
    assert table["images"] == [
        "the first 1,000 test images",
        "a random subset of 100 of 1,000 test images, sample seed 0",
    ]
    assert table["**worst case (linf 0.3)**"][0].startswith("25.0 % †")
    assert table["ddn (l2, median length)"][0] == "1.5 900 of 900 found"
    assert table["audit"] == ["not audited", "not audited"]
    page = Page(report_page(upgraded(SCHEMA_1), "", NOTHING)).words
    assert "no headline" in page and "nobody averages" in page and "650 of 900" in page


def test_compare_names_what_is_wrong(tmp_path: Path, evaluated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.json").write_text('{"schema": 2}')
    one, two = str(evaluated / "one"), str(evaluated / "two")
    wrong = {
        "none holds no results.json": [str(tmp_path / "none")],
        f"{tmp_path} holds no results.json": [str(tmp_path)],
        "named twice": [one, one],
        "a.pdf: a comparison is written to": [one, two, f"--output={tmp_path / 'a.pdf'}"],
    }
    for said, argv in wrong.items():
        assert main(["compare", *argv]) == 2
        assert said in capsys.readouterr().err
    assert main(["compare", str(evaluated / "one"), f"--output={tmp_path / 'new' / 'a.md'}"]) == 0
    assert capsys.readouterr().out == (tmp_path / "new/a.md").read_text()


# --- what only some models have ---------------------------------------------------------------------------------------


@pytest.mark.long
def test_draws_and_detectors_are_shown(evaluated: Path) -> None:
    """Sections that stochastic models and detectors have, with figures that occur nowhere else."""
    results = results_of(evaluated / "one")
    drawn = {
        "n": 20,
        "mean": 0.11111,
        "interval": [0.1, 0.2],
        "vote": 0.22222,
        "every_draw": 0.03333,
        "worst_draw": 0.07777,
    }
    malade = {"clean": 0.5, "robust": 0.61111, "clean_lenient": 0.5, "robust_error": 0.2}
    malade |= {"accepted_accuracy": None, "strict": 0.32222}
    level = {"fpr": 0.05, "theta": 1.25, "acc_adv": 0.43333, "acc_nadv_clean": 0.5, "acc_cla": None, "acc_com": 0.5}
    level |= {"of": {"acc_adv": 60, "acc_nadv_clean": 60, "acc_cla": 0, "acc_com": 60}}
    detected = {"auroc": 0.87654, "auroc_succeeded": 0.9, "roc": {"fpr": [0, 1], "tpr": [0, 1]}}
    for entry in (*results["attacks"], *results["worst_case"]):
        entry |= {"draws": drawn, "detection": {**detected, "levels": [{**level, "malade": malade}]}}
    results |= {
        "clean_draws": {**drawn, "every_draw": 0.44444},
        "detection": {
            "detector": {"class_path": "detectors.ScoreNorm", "init_args": {}},
            **{"calibration": {"split": "val", "n": 77, "invalid": 0}, "aimed_fpr": 0.05},
            "clean": {"levels": [{"fpr": 0.05, "theta": 1.25, "realised_fpr": 0.05555, "interval": [0.01, 0.1]}]},
        },
    }
    page = Page(report_page(results, "", NOTHING)).words
    for text in (page, report_text(results, "")):
        for figure in ("11 %", "22 %", "3 %", "44 %", "61 % of 60", "32 % of 60", "43 % of 60", "6 % of 60", "of 0"):
            assert figure in text, figure
        # The share right in every draw is not the accuracy of the worst one, and an interval says what it is over.
        assert "8 % in the worst single draw, 3 % right in every draw" in text
        assert "ean over 20 draws of the defense's noise, 95 % interval over draws [10, 20]" in text
        # Detector and model are named where a number is, and what the number leaves out.
        assert "with detector ScoreNorm" in text and "of MLP by its predictions alone" in text and PIXELS in text
        shares = "61 % of 60 if flagged images count as defended, 32 % of 60 if they count as failures"
        assert f"ith detector ScoreNorm at 5 % false positives {shares}" in text and "no defense" not in text
    assert "0.8765" in page and "ScoreNorm, calibrated on 77 held-out images" in page


# How the samples were chosen, whether the model is stochastic: what the report says of intervals.
INTERVALS: dict[str, tuple[dict[str, Any], bool, str, str]] = {
    "all": (
        {"chosen": "all"},
        False,
        "all 60 test images, so no interval over images; training seeds still vary",
        "all of",
    ),
    "all, stochastic": ({"chosen": "all"}, True, "training seeds and the defense's draws still vary", "all of them"),
    "first": (
        {"chosen": "first"},
        False,
        "of these 60 images, the first of their set; no interval",
        "no random sample",
    ),
    "random": ({}, False, "95 % interval over images [", "intervals are over images"),
}


@pytest.mark.parametrize("case", INTERVALS)
def test_an_interval_says_what_it_is_over(case: str, evaluated: Path) -> None:
    samples, stochastic, said, note = INTERVALS[case]
    results = results_of(evaluated / "one")
    results["samples"] |= samples
    if samples:
        results["clean_interval"] = None
        for entry in (*results["attacks"], *results["worst_case"]):
            entry["interval"] = None
    if stochastic:
        results["clean_draws"] = {"n": 2, "mean": 0.5, "interval": [0, 1], "vote": 0, "every_draw": 0, "worst_draw": 0}
    for text in (report_text(results, ""), Page(report_page(results, "", NOTHING)).words):
        assert said in text and note in text, text[:1000]


WORDS: dict[str, tuple[str, str]] = {
    "share of few": (percent(1 / 3, 300), "33 %"),
    "share of a thousand": (percent(1 / 3, 1000), "33.3 %"),
    "mean length of few": (length(1 / 3, 999), "0.33"),
    "mean length of many": (length(1 / 3, 1000), "0.333"),
    "share of many": (percent(1 / 3, 10000), "33.33 %"),
    "radius in steps": (radius(8 / 255), "8/255"),
    "plain radius": (radius(0.3), "0.3"),
    "a fifth is 51/255, too": (radius(0.2), "0.2"),
    "large radius": (radius(2.0), "2"),
    "no radius": (radius(None), ""),
    "seconds": (duration(0.84), "0.8 s"),
    "minutes": (duration(725), "12 min 05 s"),
    "nearly a minute": (duration(59.9), "1 min 00 s"),
    "hours": (duration(12000), "3 h 20 min"),
    "nested": (
        settings(
            {"class_path": "attacks.Restarts", "init_args": {"n": 2, "attack": {"class_path": "a.B", "init_args": {}}}}
        ),
        "Restarts(n=2, attack=B)",
    ),
    "left out": (settings({"class_path": "a.B", "init_args": {"x": None, "y": [0.1, 2]}}), "B(y=[0.1, 2])"),
}


@pytest.mark.parametrize("case", WORDS)
def test_words(case: str) -> None:
    said, expected = WORDS[case]
    assert said == expected


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The system's chromium, headless; without one skipped or, where REQUIRE_BROWSER is set, failed."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        reason = "needs a browser: apt-get install chromium chromium-driver"
        assert not os.environ.get("REQUIRE_BROWSER"), reason
        pytest.skip(reason)
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # Root must not use the sandbox; small /dev/shm of containers is left alone.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    chrome = Chrome(options=options, service=Service(executable_path=driver))
    try:
        yield chrome
    finally:
        chrome.quit()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("name", ["one/report.html", "compare/compare.html"])
def test_pages_in_a_browser(name: str, width: int, scheme: str, browser: Any, evaluated: Path) -> None:
    """No complaint, no request, every image there, nothing wider than the window, the headline in sight."""
    page = evaluated / name
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(page.as_uri())
    images = browser.execute_async_script(
        "const done = arguments[0], all = [...document.images];"
        "Promise.allSettled(all.map(i => i.decode())).then(() => done(all.map(i => i.naturalWidth)))"
    )
    assert len(images) == len(Page(page.read_text()).all("img")) > 0 and min(images) > 0
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script("return window.innerWidth") == width
    headline = browser.execute_script(
        "const e = document.querySelector('.headline .figure, tbody td');"
        "const box = e.getBoundingClientRect(), seen = e.checkVisibility();"
        "return [seen, box.width, box.left, box.right, e.textContent]"
    )
    assert headline[0] and headline[1] > 20 and headline[2] >= 0 and headline[3] <= width and "%" in headline[4]
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 200) == (scheme == "dark")
    assert [entry["message"] for entry in browser.get_log("browser")] == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:")] == [page.as_uri()]
