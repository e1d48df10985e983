"""Writes tables: methods, attacks and data from the catalogues, figures from results/, and the list of experiments.

python docs/readme_tables.py           writes README.md and configs/experiments/README.md
python docs/readme_tables.py --check   fails where one of them is not what it would write
"""

import inspect
import json
import re
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from adversarial_lightning import (
    attacks,
    datamodules,
    defenses,
    lightning_modules,
)
from adversarial_lightning.attacks import Attack
from adversarial_lightning.checkpoints.spec import catalogue
from adversarial_lightning.evaluation.report.formatting import table

ROOT = Path(__file__).resolve().parent.parent
RESULTS, EXPERIMENTS = ROOT / "results", ROOT / "configs" / "experiments"


def first_line(documented: object) -> str:
    """The first line of a docstring, without its full stop."""
    return (inspect.getdoc(documented) or "").splitlines()[0].rstrip(".")


def where(cls: type) -> str:
    """A link to the file of a class."""
    path = Path(inspect.getfile(cls)).relative_to(ROOT)
    return f"[{path}]({path})"


def named(path: Path, room: str) -> str:
    """The class of the method or of the data that an experiment names."""
    key = {"lightning_modules": "model", "datamodules": "data"}[room]
    return str(yaml.safe_load(path.read_text())[key]["class_path"])


def used_in(cls: type, room: str) -> str:
    """How many experiments train with `cls`, linked to their list."""
    n = sum(named(path, room) == cls.__name__ for path in EXPERIMENTS.rglob("*.yaml"))
    return f"[{n}](configs/experiments/README.md)" if n else ""


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
    leaves = [c for c in catalogue(lightning_modules) if hasattr(c, "training_step") and not inspect.isabstract(c)]
    leaves = [c for c in leaves if c.__name__ not in ("Classifier", "LossClassifier", "Method")]
    rows = [[c.__name__, first_line(inspect.getmodule(c)), where(c), used_in(c, "lightning_modules")] for c in leaves]
    return table(["method", "what it is (paper)", "file", "experiments"], rows)


def attack_table() -> list[str]:
    leaves = [c for c in catalogue(attacks) if issubclass(c, Attack) and c is not Attack]
    files = [c.__module__ for c in leaves]
    rows = []
    for cls in leaves:
        alone = files.count(cls.__module__) == 1
        what = first_line(inspect.getmodule(cls) if alone else cls)
        norm = inspect.get_annotations(cls, eval_str=True).get("norm")
        norms = ", ".join(getattr(norm, "__args__", ())) if norm else ""
        # A combination has its parts' kind and knowledge: properties, of which the class says nothing.
        kind, knowledge = (v if isinstance(v, str) else "of its parts" for v in (cls.kind, cls.knowledge))
        rows.append([cls.__name__, norms, kind, knowledge, what, where(cls)])
    return table(["attack", "norms", "kind", "knowledge", "what it is (paper)", "file"], rows)


def data() -> list[str]:
    leaves = [c for c in catalogue(datamodules) if not inspect.isabstract(c)]
    rows = [[c.__name__, first_line(c), where(c), used_in(c, "datamodules")] for c in leaves]
    return table(["data", "what it is", "file", "experiments"], rows)


def defense_table() -> list[str]:
    leaves = [c for c in catalogue(defenses) if issubclass(c, defenses.Purifier) and not inspect.isabstract(c)]
    leaves = [c for c in leaves if c is not defenses.Purifier]
    answer = {True: "yes", False: "no"}
    rows = [[c.__name__, first_line(c), answer[c.differentiable], answer[c.stochastic], where(c)] for c in leaves]
    return table(["purifier", "what it is", "differentiable", "stochastic", "file"], rows)


Figures = dict[str, tuple[float, int]]  # row of a table -> value and decimals


def figures(r: dict[str, Any]) -> tuple[Figures, Figures, Figures]:
    """What results.json says: accuracies in percent, rho, worst cases in percent."""
    accuracy, rho = {"clean": (100 * r["clean_accuracy"], 1)}, {}
    for a in r["attacks"]:
        radius = "at any length" if a["eps"] is None else f"{a['eps']:g}"
        size = f" ({a['norm']} {radius}, {a['restarts']} x)" if a["norm"] else ""
        accuracy[a["name"] + size] = (100 * a["robust_accuracy"], 1)
        if a.get("relative_norm") is not None:
            rho[f"rho under {a['name']}"] = (a["relative_norm"], 3)
    worst = {f"**worst case** ({c['norm']} {c['eps']:g})": (100 * c["robust_accuracy"], 1) for c in r["worst_case"]}
    return accuracy, rho, worst


def cell(found: list[tuple[float, int]]) -> str:
    """A figure, or mean and standard deviation of the same figure over seeds of training."""
    values, digits = [value for value, _ in found], found[0][1]
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def results() -> list[str]:
    """One table for each folder of results/: models across, attacks down, every figure as evaluate.py wrote it.

    Where a model has folders seed_* of its own, they are further trainings: mean and standard deviation stand there.
    """
    lines: list[str] = []
    for folder in sorted(p for p in RESULTS.iterdir() if p.is_dir() and any(p.glob("*/results.json"))):
        names = [p.parent.name for p in sorted(folder.glob("*/results.json"))]
        order = sorted(names, key=lambda name: (name != "standard", name))
        paths = {name: [folder / name, *sorted((folder / name).glob("seed_*"))] for name in order}
        runs = {name: [json.loads((p / "results.json").read_text()) for p in paths[name]] for name in order}
        about = {name: [json.loads((p / "run.json").read_text()) for p in paths[name]] for name in order}
        columns = {name: [figures(r) for r in runs[name]] for name in order}
        rows = []
        for group in range(3):
            for label in dict.fromkeys(label for name in order for label in columns[name][0][group]):
                found = [[c[group][label] for c in columns[name] if label in c[group]] for name in order]
                rows.append([label, *(cell(values) if values else "" for values in found)])
        lines += [f"### {folder.name}", ""]
        lines += table(["accuracy, %", *order], rows)
        facts = {
            f"n = {r['n']}, seed {r['seed']}, {a['machine']}, {a['date']}"
            for n in order
            for r, a in zip(runs[n], about[n], strict=True)
        }
        lines += ["", "; ".join(sorted(facts)) + "."]
        seeds = {name: len(runs[name]) for name in order if len(runs[name]) > 1}
        if seeds:
            lines += ["±: standard deviation over trainings, " + ", ".join(f"{n} {k}" for n, k in seeds.items()) + "."]
        lines += [f"{name}: {about[name][0]['note']}" for name in order if about[name][0]["note"]]
        lines.append("")
    return lines


DOCUMENTS = {
    ROOT / "README.md": {
        "methods": methods,
        "attacks": attack_table,
        "defenses": defense_table,
        "data": data,
        "results": results,
    },
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


if __name__ == "__main__":
    for document in DOCUMENTS:
        text = document.read_text()
        if "--check" not in sys.argv:
            document.write_text(filled(document, text))
        elif filled(document, text) != text:
            sys.exit(f"{document.relative_to(ROOT)} is out of date: run make readme")
