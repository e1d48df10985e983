"""Report in markdown: one sentence for each threat model, and aligned tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from adversarial_lightning.evaluation.report.after_audit import (
    NOTHING,
    VERDICTS,
    audit_words,
    claim_words,
    figures,
    headline_share,
    headline_word,
    legend,
    marks,
    share_words,
    verdict,
    worthless,
)
from adversarial_lightning.evaluation.report.class_table import MOST_ROWS, class_note, class_table
from adversarial_lightning.evaluation.report.formatting import (
    count,
    duration,
    facts,
    facts_of_cost,
    interval,
    interval_words,
    length,
    lengths,
    percent,
    samples,
    share_of,
    table,
    where,
)
from adversarial_lightning.evaluation.report.html import groups, over_draws
from adversarial_lightning.evaluation.report.subject import (
    PIXELS,
    badge_words,
    detector_words,
    doubts,
    draws_words,
    interval_note,
    judged,
    model_facts,
    subject,
)
from adversarial_lightning.evaluation.report.threats import any_radius

Results = dict[str, Any]
CRITERIA = ("acc_adv", "acc_nadv_clean", "acc_cla", "acc_com")


def headlines(results: Results) -> list[str]:
    """Sentence for each threat model with a headline number: its interval, its attacks and the state of the audit.

    Where the audit left nothing of the number, that is what the sentence says, and no number.
    """
    cases = [case for case in results["worst_case"] if not case.get("refused")]
    shortest = [c for c in (results["audit"] or {}).get("claims", ()) if c["quantile"]]
    return [
        *(_headline(results, case) for case in cases),
        *(f"{claim_words(claim, results['n'])}; {badge_words(results)}" for claim in shortest),
    ]


def _headline(results: Results, case: Results) -> str:
    n, broken = results["n"], case.get("broken_by_audit")
    of = f"{judged(results)} at {where(case)}, {PIXELS}"
    clean = f"clean {percent(results['clean_accuracy'], n)}"
    if failed := worthless(results, case):
        said = f"{headline_word(case)}{of}: audit failed: {failed} — {NOTHING}"
        return "; ".join([said, clean, *doubts(results)])
    over = "" if broken else interval_words(case["interval"], results)
    basis = [over, draws_words(results, case), f"worst case of {', '.join(case['attacks'])}"]
    basis += [f"n = {n}, {samples(results)}"] if case["interval"] else [f"n = {n}"]
    parts = f"{headline_share(case, n, of)} ({'; '.join(filter(None, basis))})", detector_words(results, case), clean
    return "; ".join(filter(None, (*parts, badge_words(results))))


def report_text(results: Results, command: str) -> str:
    """The whole report in markdown; `results` as in results.json."""
    lines = ["# Robustness report", "", subject(results), ""]
    lines += [f"{sentence}\n" if NOTHING in sentence else f"**{sentence}**\n" for sentence in headlines(results)]
    lines += [f"> {note}\n" for note in results["warnings"]]
    lines += _attacks(results)
    lines += _classes(results)
    lines += _draws(results)
    lines += _lengths(results)
    lines += _detector(results)
    lines += _audit(results)
    lines += ["## Cost", "", *(f"- {name}: {value}" for name, value in facts_of_cost(results).items()), ""]
    lines += ["## How to repeat it", "", "```", command, "```", ""]
    lines += [f"- {name}: {value}" for name, value in {**model_facts(results), **facts(results)}.items()]
    lines += ["", "Curves, histograms, examples and confusions are in report.html, and in TensorBoard."]
    return "\n".join(lines) + "\n"


def _attacks(results: Results) -> list[str]:
    n = results["n"]
    rows = [["clean", "", *_share(results["clean_accuracy"], results["clean_interval"], n), "", "", "", ""]]
    for group in groups(results):
        for a in group["attacks"]:
            accuracy = _share(a["robust_accuracy"], a["interval"], n)
            if any_radius(a):
                accuracy = f"median length {length(a['median_norm'], a['attacked']) or 'infinite'}", ""
            broken_by = f"{count(a['succeeded'])} of {count(a['attacked'])}"
            passes = f"{count(a['forwards'])} / {count(a['backwards'])}"
            model = where(a)
            rows.append([a["name"], model, *accuracy, broken_by, str(a["restarts"]), passes, duration(a["seconds"])])
        if case := group["case"]:
            bounds = "" if case.get("broken_by_audit") else interval(case["interval"], n)
            label = f"**worst case**{marks(results, case)}"
            rows.append([label, where(case), share_words(case, n), bounds, "", "", "", ""])
    head = ["attack", "threat", "accuracy", "95 % interval", "broken by", "runs"]
    lines = ["## Attacks", "", *table([*head, "forward / backward passes", "time"], rows), ""]
    lines += [f"n = {n}, {samples(results)}; {interval_note(results)}. Radii are of {PIXELS}."]
    lines += ["A sample is robust where the model is right without the attack and after every run of it."]
    lines += ["Worst case: the mean over samples of the minimum over the attacks of a threat model.", ""]
    for note in legend(results):
        lines += [note, ""]
    if results["mode"] == "worst_case":
        lines += ["A later attack ran only on samples that the earlier ones of its threat model left robust: its row"]
        lines += ["counts the samples that are robust after all of them.", ""]
    return lines


def _classes(results: Results) -> list[str]:
    head, rows = class_table(results)
    if len(rows) < 2:
        return []
    about = class_note(results)
    if len(rows) > MOST_ROWS:
        about += f" The {MOST_ROWS} weakest of {len(rows)} classes; results.json has all."
    return ["## By class", "", *table(head, rows[:MOST_ROWS]), "", about, ""]


def _draws(results: Results) -> list[str]:
    n, kinds = results["n"], ("vote", "worst_draw", "every_draw")
    rows = [
        [name, str(d["n"]), *_share(d["mean"], d["interval"], n), *(percent(d[kind], n) for kind in kinds)]
        for name, d in over_draws(results)
    ]
    head = ["attack", "draws", "mean", "95 % interval over draws", "majority vote"]
    head += ["worst single draw", "right in every draw"]
    return ["## Over the defender's draws", "", *table(head, rows), "", f"n = {n}.", ""] if rows else []


def _lengths(results: Results) -> list[str]:
    rows = [
        [
            *(a["name"], a["norm"], f"{count(a['found'])} of {count(a['attacked'])}", count(a["failed"])),
            *(_mean(a[key], a[f"{key}_interval"], a["found"]) for key in ("mean_norm", "relative_norm")),
            length(a["relative_norm_with_failures"], a["attacked"]),
            length(a["median_norm"], a["attacked"]) or "infinite",
        ]
        for a in results["attacks"]
        if a.get("curve")
    ]
    head = ["attack", "norm", "found", "not found", "mean length", "mean relative length (rho)"]
    head += ["rho, failures at the largest", "median length (failures infinite)"]
    about = "Means are over the images that were found."
    if results["clean_interval"]:
        about += " In brackets 95 % intervals over images (bootstrap)."
    return ["## Shortest adversarial perturbations", "", *table(head, rows), "", about, ""] if rows else []


def _mean(value: float | None, bounds: Sequence[float] | None, n: int) -> str:
    return f"{length(value, n)} {lengths(bounds, n)}".strip()


def _detector(results: Results) -> list[str]:
    if not results.get("detection"):
        return []
    n, lines = results["n"], ["## Detector", ""]
    for i, level in enumerate(results["detection"]["clean"]["levels"]):
        rows = []
        for entry in (*results["attacks"], *results["worst_case"]):
            d = entry["detection"]["levels"][i]
            name = entry.get("name") or f"worst case ({where(entry)}){_before(results, entry)}"
            figures = [(d[key], d["of"][key]) for key in CRITERIA] + [(v, n) for v in _malade(d["malade"])]
            rows.append([name, *(share_of(value, of) for value, of in figures)])
        realised = f"{share_of(level['realised_fpr'], n)} {interval(level['interval'], n)}".strip()
        which = "Its own threshold" if level["fpr"] is None else f"False positives {100 * level['fpr']:g} %"
        lines += [f"{which} (false positives on the test images {realised}):", ""]
        head = [
            "attack",
            "ACC-ADV",
            "ACC-NADV (clean)",
            "ACC-CLA",
            "ACC-COM",
            "robust (flagged: defended)",
            "robust (strict)",
        ]
        lines += [*table(head, rows), ""]
    return lines


def _before(results: Results, case: Results) -> str:
    """Remark on numbers of a worst case from which no sample is taken out."""
    return ", before the audit" * bool(case.get("broken_by_audit")) + marks(results, case)


def _malade(accountings: Mapping[str, Any]) -> Sequence[float | None]:
    return accountings["robust"], accountings["strict"]


def _audit(results: Results) -> list[str]:
    said = audit_words(results["audit"])
    lines = ["## Audit", "", f"{said[0].upper()}{said[1:]}.", ""]
    if results["audit"]:
        lines += [f"- {claim_words(claim, results['n'])}." for claim in results["audit"].get("claims", ())] + [""]
        order = list(VERDICTS)
        for c in sorted(results["audit"]["checks"], key=lambda c: order.index(verdict(c))):
            lines.append(f"- {verdict(c)}: {c['id']} {c['name']}{figures(c)}. {c['sentence']}")
        lines.append("")
    return lines


def _share(share: float, bounds: Sequence[float] | None, n: int) -> tuple[str, str]:
    return percent(share, n), interval(bounds, n)
