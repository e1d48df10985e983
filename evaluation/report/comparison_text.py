"""A comparison as a table in markdown, and the sentences below it."""

from functools import partial

from adversarial_lightning.evaluation.report import formatting, subject
from adversarial_lightning.evaluation.report.after_audit import MARKS
from adversarial_lightning.evaluation.report.comparison import Cell, Comparison

BEST = (
    "Bold: better than every other model of the row that may be bold, by a paired test on the same images (McNemar, "
    "5 %) or, where it is not recorded which images are robust, by Wilson's intervals that do not overlap; never with "
    "a failed audit, a clean accuracy that differs from the published one, ≤, † or ✗."
)
LESSER = (
    "‡: accuracy under these attacks; robust accuracy takes two objectives and an attack without gradients, in l2 and "
    "l1 a minimum-norm attack too."
)


def notes(comparison: Comparison) -> list[str]:
    """Sentences for the marks in the table."""
    cells = [cell for group in comparison.groups for row in group.rows for cell in row.cells.values()]
    known = {
        MARKS["refused"]: any(cell.refused for cell in cells),
        MARKS["worthless"]: any(cell.worthless for cell in cells),
        MARKS["at most"]: any(cell.at_most for cell in cells),
        LESSER: any(cell.lesser for cell in cells),
    }
    return [note for note, there in known.items() if there]


def side_by_side(comparison: Comparison) -> str:
    """The comparison as a markdown table, aligned for reading as text."""
    models = list(comparison.models)
    body: list[list[str]] = []
    for group in comparison.groups:
        for row in group.rows:
            label = f"{row.label} ({group.title})" if group.title else row.label
            body.append([f"**{label}**" if row.worst else label, *(_words(row.cells.get(model)) for model in models)])
    for what, say in (("model", subject.model_in_table), ("defense", partial(subject.defended_by, brief=True))):
        body.append([what, *map(say, comparison.models.values())])
    body.append(["images", *(formatting.samples(comparison.models[model]) for model in models)])
    body.append(["audit", *(subject.badge_words(comparison.models[model]) for model in models)])
    lines = formatting.table(["accuracy under", *models], body)
    lines += [
        "",
        f"{BEST} In brackets 95 % intervals over images; radii are of {subject.PIXELS}. Worst case: mean over samples "
        "of the minimum over attacks.",
    ]
    for note in notes(comparison):
        lines += ["", note]
    if comparison.unfair_because:
        lines += ["", f"This comparison is unfair: {'; '.join(comparison.unfair_because)}."]
    return "\n".join(lines) + "\n"


def _words(cell: Cell | None) -> str:
    if cell is None:
        return ""
    text = f"**{cell.text}**" if cell.best else cell.text
    return f"{text}{' †' * cell.refused}{' ✗' * cell.worthless}{' ‡' * cell.lesser} {cell.bounds}"
