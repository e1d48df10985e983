"""Write the generated tables: README.md, docs, results/README.md and configs/experiments/README.md.

python docs/tables.py           writes the tables between their markers
python docs/tables.py --check   fails where a document is not what it would write
"""

import inspect
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, stdev
from types import ModuleType
from typing import Any, get_args

import yaml
from pytorch_lightning import Callback
from references import reference_list
from torch import nn

from adversarial_lightning import (
    attacks,
    callbacks,
    datamodules,
    defenses,
    detectors,
    lightning_modules,
    networks,
    zoo,
)
from adversarial_lightning.attacks import Attack
from adversarial_lightning.checkpoints.spec import catalogue
from adversarial_lightning.evaluation.report.after_audit import share, worthless
from adversarial_lightning.evaluation.report.formatting import interval, percent, table, where
from adversarial_lightning.evaluation.report.stored_results import read_results
from adversarial_lightning.reproduce.papers import leaderboard
from adversarial_lightning.reproduce.papers.judged import count
from adversarial_lightning.reproduce.papers.page import text
from adversarial_lightning.reproduce.papers.paper import load as load_paper
from adversarial_lightning.reproduce.papers.paper import names as paper_names
from adversarial_lightning.reproduce.papers.plan import Places
from adversarial_lightning.reproduce.papers.verdict import Word

ROOT = Path(__file__).resolve().parent.parent
RESULTS, EXPERIMENTS = ROOT / "results", ROOT / "configs" / "experiments"
PLACES = Places(ROOT / "runs", RESULTS / "papers")
FAILED = "✗ audit failed"
# A full stop, then a capital letter or a quotation; not after the abbreviations of citations.
ABBREVIATIONS = ("al", "app", "ch", "Eq", "Eqs", "Fig", "Figs", "sec", "vs")
SENTENCE = re.compile("".join(rf"(?<!\b{word})" for word in ABBREVIATIONS) + r"\.\s+(?=[A-Z`'\"(\[])")


def first_sentence(documented: object) -> str:
    """The first sentence of a docstring, on one line and without its full stop."""
    paragraph = " ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split())
    return SENTENCE.split(paragraph)[0].removesuffix(".")


def link(cls: type, base: str = "") -> str:
    """The name of a class, linked to its file; `base` leads from the document to the root."""
    return f"[{cls.__name__}]({base}{Path(inspect.getfile(cls)).relative_to(ROOT)})"


def what(cls: type, leaves: Iterable[type]) -> str:
    """What a class is: of its file, where it is the only one of `leaves` there, else of the class."""
    alone = sum(c.__module__ == cls.__module__ for c in leaves) == 1
    return first_sentence(inspect.getmodule(cls) if alone else cls)


def concrete(room: ModuleType, base: type) -> list[type]:
    """The classes of a room's catalogue that can be used as they are, by name."""
    found = [c for c in catalogue(room) if issubclass(c, base) and c is not base and not inspect.isabstract(c)]
    found = [c for c in found if not first_sentence(c).startswith("Abstract base")]
    return sorted(found, key=lambda c: c.__name__.lower())


def named(path: Path, room: str) -> str:
    """The class of the method or of the data that an experiment names."""
    key = {"lightning_modules": "model", "datamodules": "data"}[room]
    return str(yaml.safe_load(path.read_text())[key]["class_path"])


def used_in(cls: type, room: str, base: str = "") -> str:
    """How many experiments train with `cls`, linked to their list."""
    n = sum(named(path, room) == cls.__name__ for path in EXPERIMENTS.rglob("*.yaml"))
    return f"[{n}]({base}configs/experiments/README.md)" if n else ""


def experiments() -> list[str]:
    """One row for each file: what trains on what, and the first sentence of its header."""
    rows = []
    for path in sorted(EXPERIMENTS.rglob("*.yaml")):
        header = re.findall(r"^# +(.*)$", path.read_text().split("\n# command:")[0], re.M)
        what = re.split(r"(?<!al)(?<!Eq)\. (?=[A-Z])", " ".join(header))[0].rstrip(".")
        method, data = (named(path, room) for room in ("lightning_modules", "datamodules"))
        rows.append([f"[{path.stem}]({path.relative_to(EXPERIMENTS)})", method, data, what])
    return table(["experiment", "method", "data", "what it is"], sorted(rows, key=lambda row: (row[1], row[0])))


def methods() -> list[str]:
    leaves = concrete(lightning_modules, lightning_modules.TrainingMethod)
    rows = [[link(c), first_sentence(inspect.getmodule(c)), used_in(c, "lightning_modules")] for c in leaves]
    return table(["method", "what it is (paper)", "experiments"], rows)


def attack_table() -> list[str]:
    leaves = concrete(attacks, Attack)
    rows = []
    for cls in leaves:
        norm = inspect.get_annotations(cls, eval_str=True).get("norm")
        norms = ", ".join(getattr(norm, "__args__", ())) if norm else ""
        # A combination has its parts' kind and knowledge: properties, of which the class says nothing.
        kind, knowledge = (v if isinstance(v, str) else "as its parts" for v in (cls.kind, cls.knowledge))
        rows.append([link(cls, "../"), norms, kind, knowledge, what(cls, leaves)])
    return table(["attack", "norms", "kind", "knowledge", "what it is (paper)"], rows)


def data() -> list[str]:
    leaves = concrete(datamodules, datamodules.ImageData)
    rows = [[link(c, "../"), first_sentence(c), used_in(c, "datamodules", "../")] for c in leaves]
    return table(["data", "what it is", "experiments"], rows)


def defense_table() -> list[str]:
    answer = {True: "yes", False: "no"}
    rows = [
        [link(c, "../"), first_sentence(c), answer[c.differentiable], answer[c.stochastic]]
        for c in concrete(defenses, defenses.Purifier)
    ]
    return table(["purifier", "what it is", "differentiable", "stochastic"], rows)


def detector_table() -> list[str]:
    leaves = concrete(detectors, detectors.Detector)
    rows = []
    for cls in leaves:
        fitted = "yes" if issubclass(cls, detectors.FittedDetector) else "no"
        rows.append([link(cls, "../"), what(cls, leaves), first_sentence(cls), fitted])
    return table(["detector", "what it is (paper)", "score (higher: more suspicious)", "must be fitted"], rows)


def network_table() -> list[str]:
    rows = [[link(c, "../"), first_sentence(c)] for c in concrete(networks, nn.Module)]
    return table(["network", "what it is"], rows)


def callback_table() -> list[str]:
    rows = [[link(c, "../"), first_sentence(c)] for c in concrete(callbacks, Callback)]
    return table(["callback", "what it does"], rows)


Figures = dict[str, tuple[float, int, str]]  # row of a table -> value, as many decimals as n carries, remark


def figures(r: dict[str, Any]) -> tuple[Figures, Figures, Figures]:
    """What results.json says: accuracies in percent, rho and how often the attack failed, worst cases in percent.

    Worst cases are as the audit left them: at most, without the samples that it broke, or marked as saying nothing.
    """
    n = r["n"]
    digits = max(0, len(str(n)) - 3)
    accuracy: Figures = {"clean": (100 * r["clean_accuracy"], digits, "")}
    rho: Figures = {}
    for a in r["attacks"]:
        radius = "at any length" if a["eps"] is None else f"{a['eps']:g}"
        at = where(a) if a.get("members") else f"{a['norm']} {radius}"
        size = f" ({at}, {a['restarts']} x)" if a["norm"] else ""
        accuracy[a["name"] + size] = (100 * a["robust_accuracy"], digits, "")
        if a.get("relative_norm") is not None:
            failed = f"{a['failed']} not found" if a["failed"] else ""
            rho[f"rho under {a['name']}"] = (a["relative_norm"], 2 if n < 1000 else 3, failed)
    worst: Figures = {}
    for c in r["worst_case"]:
        remark = "at most" if c.get("broken_by_audit") else interval(c["interval"], n)
        at = where(c) if c.get("members") else f"{c['norm']} {c['eps']:g}"
        worst[f"**worst case** ({at})"] = (100 * share(c), digits, FAILED if worthless(r, c) else remark)
    return accuracy, rho, worst


def cell(found: list[tuple[float, int, str]]) -> str:
    """A figure with its remark, or mean and standard deviation of the same figure over seeds of training."""
    values, digits, remark = [value for value, _, _ in found], found[0][1], found[0][2]
    if len(values) > 1:
        remarks = dict.fromkeys(remark for *_, remark in found if remark.startswith(("at most", FAILED)))
        return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}" + "".join(f" ({remark})" for remark in remarks)
    return f"{values[0]:.{digits}f}" + (f" ({remark})" if remark else "")


def chosen(r: dict[str, Any]) -> str:
    """How many images a result is of, and which."""
    which = {"random": f" random of {r['samples']['of']}"}.get(r["samples"]["chosen"], "")
    return f"first {r['n']}" if r["samples"]["chosen"] == "first" else f"{r['n']}{which}"


def results() -> list[str]:
    """One table for each folder of results/: models across, attacks down, every figure as the evaluation wrote it.

    Folders seed_* of a model are further trainings of it: the table has mean and standard deviation over them.
    """
    lines: list[str] = []
    for folder in sorted(p for p in RESULTS.iterdir() if p.is_dir() and any(p.glob("*/results.json"))):
        names = [p.parent.name for p in sorted(folder.glob("*/results.json"))]
        order = sorted(names, key=lambda name: (name != "standard", name))
        paths = {name: [folder / name, *sorted((folder / name).glob("seed_*"))] for name in order}
        runs = {name: [read_results(p) for p in paths[name]] for name in order}
        about = {name: [json.loads((p / "run.json").read_text()) for p in paths[name]] for name in order}
        columns = {name: [figures(r) for r in runs[name]] for name in order}
        rows = []
        for group in range(3):
            for label in dict.fromkeys(label for name in order for label in columns[name][0][group]):
                found = [[c[group][label] for c in columns[name] if label in c[group]] for name in order]
                rows.append([label, *(cell(values) if values else "" for values in found)])
        rows.append(["images (n)", *(" + ".join(map(chosen, runs[name])) for name in order)])
        lines += [f"## {folder.name}", ""]
        lines += table(["accuracy, %", *order], rows)
        facts = {
            f"seed {r['seed']} of the draws, {a['machine']}, {a['date']}"
            for n in order
            for r, a in zip(runs[n], about[n], strict=True)
        }
        lines += ["", f"{'; '.join(sorted(facts))}."]
        seeds = {name: len(runs[name]) for name in order if len(runs[name]) > 1}
        if seeds:
            lines += ["±: standard deviation over trainings, " + ", ".join(f"{n} {k}" for n, k in seeds.items()) + "."]
        lines += ["", *(f"- **{name}**: {about[name][0]['note']}" for name in order if about[name][0]["note"])]
        lines.append("")
    return lines


def papers() -> list[str]:
    """One row for each paper: how many of its printed numbers and claims have which verdict."""
    rows = []
    for name in paper_names():
        paper, counts = load_paper(name), count(load_paper(name), PLACES)
        numbers = [str(counts[word]) for word in get_args(Word)]
        rows.append([f"[{name}](results/papers/{name}.md), {paper.year}", str(len(paper.tables)), *numbers])
    return table(["paper", "tables, figures", *get_args(Word)], rows)


def board() -> list[str]:
    """The leaderboard: one table for each threat model."""
    networks = {zoo.about(name)["training"]: name for name in zoo.names()}
    lines: list[str] = []
    for title, rows in leaderboard.rows(PLACES.output / "records", networks).items():
        lines += [f"**{title}**", "", *table(leaderboard.HEADS, rows), ""]
    return lines or ["Nothing is recorded yet."]


def mutants() -> list[str]:
    """By folder and by file, how many of the mutants in results/mutants.json a test notices."""
    recorded = json.loads((RESULTS / "mutants.json").read_text())["files"]
    counts: dict[str, Counter[str]] = {}
    for file, entry in recorded.items():
        outcomes = Counter(mutant["outcome"] for mutant in entry["mutants"])
        for name in ("**all**", f"**{Path(file).parent}**", file) if outcomes else ():
            counts[name] = counts.get(name, Counter()) + outcomes
    rows = []
    for name, outcomes in sorted(counts.items(), key=lambda item: (not item[0].startswith("**"), item[0])):
        noticed, counted = outcomes["killed"] + outcomes["timeout"], outcomes.total() - outcomes["equivalent"]
        share = percent(noticed / counted, counted) if counted else ""
        rows.append([name, str(outcomes.total()), str(outcomes["equivalent"]), str(noticed), str(counted), share])
    return table(["file", "mutants", "equivalent", "noticed", "of", "%"], rows)


Tables = dict[str, Callable[[], list[str]]]
DOCUMENTS: dict[Path, Tables] = {
    ROOT / "README.md": {"methods": methods, "papers": papers},
    RESULTS / "papers" / "README.md": {"leaderboard": board},
    ROOT / "docs" / "catalogue.md": {
        "attacks": attack_table,
        "defenses": defense_table,
        "detectors": detector_table,
        "data": data,
        "networks": network_table,
        "callbacks": callback_table,
    },
    ROOT / "docs" / "references.md": {"references": reference_list},
    ROOT / "docs" / "mutants.md": {"mutants": mutants},
    RESULTS / "README.md": {"results": results},
    EXPERIMENTS / "README.md": {"experiments": experiments},
}


def filled(document: Path, text: str) -> str:
    """`text` of `document` with every marked table written anew; a table without its markers is an error."""
    for name, make in DOCUMENTS[document].items():
        begin, end = f"<!-- {name}: generated -->", f"<!-- {name}: end -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"{document.name} needs {begin} and {end}, once each")
        before, rest = text.split(begin)
        text = before + "\n".join([begin, "", *make(), "", end]) + rest.split(end)[1]
    return re.sub(r"\n{3,}", "\n\n", text)


def pages() -> dict[Path, str]:
    """The papers' pages, each as its file should be."""
    return {PLACES.output / f"{name}.md": text(load_paper(name), PLACES) for name in paper_names()}


if __name__ == "__main__":
    for path, page in pages().items():
        if "--check" not in sys.argv:
            path.write_text(page)
        elif not path.exists() or path.read_text() != page:
            sys.exit(f"{path.relative_to(ROOT)} is out of date: run make readme")
    for document in DOCUMENTS:
        text = document.read_text()
        if "--check" not in sys.argv:
            document.write_text(filled(document, text))
        elif filled(document, text) != text:
            sys.exit(f"{document.relative_to(ROOT)} is out of date: run make readme")
