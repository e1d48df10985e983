"""The papers of docs/references.bib, and where code, configurations and documents cite them.

A paper is cited as `Surname YEAR`, `Surname and Surname YEAR` or, of three authors and more, `Surname et al. YEAR`,
with a letter behind the year where two papers would be cited alike. Inside one file later mentions may leave out the
year.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "docs" / "references.bib"
ROOMS = ("attacks", "callbacks", "checkpoints", "datamodules", "defenses", "detectors", "evaluation", "networks")
ROOMS += ("adversarial_lightning", "benchmarks", "configs", "docs", "lightning_modules", "reproduce", "tests")
OWN = ("references.py", "references.md", "test_references.py")  # they are about citations

SURNAME = r"[A-Z](?=[\w'-]*[a-z])[\w'-]+"  # a lower-case letter: ICLR 2018 is no citation
CITATION = re.compile(rf"\b({SURNAME})( et al\b\.?| and (?:Ben )?{SURNAME})?,? \(?((?:19|20)\d\d[a-z]?)\b")
WITHOUT_YEAR = re.compile(rf"\b({SURNAME}) et al\b\.?(?!,? \(?(?:19|20)\d\d)")
# A word, a comma and a year are no citation of one author: "Nanyang Technological University, 2020".
AFTER_COMMA = re.compile(rf"^{SURNAME}, ")


@dataclass(frozen=True)
class Reference:
    """One entry of docs/references.bib."""

    key: str
    fields: dict[str, str]

    @cached_property
    def surnames(self) -> list[str]:
        return [author.split(",")[0] for author in self.fields["author"].split(" and ")]

    @cached_property
    def citation(self) -> str:
        """The one way in which the paper is cited."""
        first, *others = self.surnames
        who = first + (" et al." if len(others) > 1 else "".join(f" and {name}" for name in others))
        return f"{who} {self.fields['year']}" + re.sub(r".*\d", "", self.key)

    @cached_property
    def venue(self) -> str:
        if "school" in self.fields:
            return f"Doctoral thesis, {self.fields['school']}"
        return next((self.fields[k] for k in ("booktitle", "journal", "howpublished") if k in self.fields), "Preprint")

    @cached_property
    def links(self) -> list[str]:
        """Where the paper is: arXiv, DOI or a page, each as a Markdown link."""
        found = []
        if number := self.fields.get("eprint"):
            found.append(f"[arXiv:{number}](https://arxiv.org/abs/{number})")
        if doi := self.fields.get("doi"):
            address = doi.replace("(", "%28").replace(")", "%29")
            found.append(f"[doi:{doi}](https://doi.org/{address})")
        if url := self.fields.get("url"):
            found.append(f"[{url.split('/')[2]}]({url})")
        return found


def read_references(text: str) -> list[Reference]:
    """The entries of a BibTeX file that has one field a line; raises ValueError for what it cannot read."""
    found = []
    for block in re.split(r"^(?=@)", text, flags=re.M)[1:]:
        head, *lines = block.strip().splitlines()
        fields = [re.fullmatch(r"  (\w+) = \{(.+)\},", line) for line in lines[:-1]]
        start = re.fullmatch(r"@\w+\{(\w+),", head)
        if start is None or not all(fields) or lines[-1] != "}":
            raise ValueError(f"docs/references.bib: write one `  field = {{value}},` a line in {head}")
        found.append(Reference(start[1], {m[1]: m[2] for m in fields if m}))
    return found


def references() -> list[Reference]:
    """All papers, by citation."""
    return sorted(read_references(SOURCE.read_text()), key=lambda r: r.citation)


def searched() -> list[Path]:
    """Python files, configurations and documents in which papers are cited."""
    files = [p for room in ROOMS for kind in ("py", "yaml", "md") for p in (ROOT / room).rglob(f"*.{kind}")]
    files += [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    return sorted(p for p in files if p.name not in OWN)


def one_line(text: str) -> str:
    """`text` with line breaks, and the comment signs behind them, made spaces."""
    return re.sub(r"\s*\n\s*(?:# *)?", " ", text)


def citations(text: str) -> list[str]:
    """The citations of `text` with a year, as `Reference.citation` writes them."""
    found = [m for m in CITATION.finditer(one_line(text)) if m[2] or not AFTER_COMMA.match(m[0])]
    return [f"{m[1]}{(m[2] or '').removesuffix('.')} {m[3]}".replace(" et al ", " et al. ") for m in found]


def without_year(text: str) -> list[str]:
    """First authors that `text` cites without a year and nowhere with one."""
    with_year = {cited.split(" ")[0] for cited in citations(text)}
    return [m[1] for m in WITHOUT_YEAR.finditer(one_line(text)) if m[1] not in with_year]


def reference_list() -> list[str]:
    """One item for each paper: authors, title, venue, year, links, code, and the files that cite it."""
    cited = {path: set(citations(path.read_text())) for path in searched()}
    lines = []
    for reference in references():
        paths = [path.relative_to(ROOT) for path in cited if reference.citation in cited[path]]
        modules = [p for p in paths if p.suffix == ".py" and p.parts[0] != "tests"]
        configs = sum(p.suffix == ".yaml" for p in paths)
        places = [f"[{p}](../{p})" for p in modules or [p for p in paths if p.suffix == ".py"]]
        places += [f"{configs} configuration{'s' * (configs > 1)}"] if configs else []
        places += [f"[{p}](../{p})" for p in paths if p.suffix == ".md"] if not places else []
        names = [" ".join(reversed(a.split(", "))) for a in reference.fields["author"].split(" and ")]
        authors = " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
        where = ", ".join([f"{reference.venue}, {reference.fields['year']}", *reference.links])
        code = reference.fields.get("code")
        authors_code = f" Code: [{code.removeprefix('https://')}]({code})." if code else ""
        title = reference.fields["title"]
        stop = "" if title.endswith("?") else "."
        lines.append(
            f"- **{reference.citation}**: {authors}. *{title}{stop}* {where}.{authors_code} In {', '.join(places)}."
        )
    return lines
