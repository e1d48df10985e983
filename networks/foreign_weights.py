"""Weights from elsewhere, matched to a network's names tensor by tensor; nothing is passed over without a word."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adversarial_lightning.errors import UserError
from adversarial_lightning.networks.normalize import Normalize
from adversarial_lightning.networks.tensor_names import Placement, canonical, is_counter, left_out, placements
from adversarial_lightning.networks.weights_file import read

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Report:
    """Report of which tensor of a file went where.

    `key` is the entry of the file that was taken ("": the file itself), `prefix` what its names begin with.
    `mapped`: name in the network -> name in the file. `kept`: tensors of the network that a file need not hold
    (counters of BN, a normalisation that the configuration states). `ignored`: name in the file -> reason why it is
    left out; `extra`: those of them that nobody expected. `passed_over`: other entries of the file -> what they are.
    `missing` and `unexpected` have no partner; `misshapen` have one of another shape; `doubts` say where several would
    do. `sha256` is that of the file, if it was computed.
    """

    file: str
    key: str = ""
    prefix: str = ""
    sha256: str = ""
    mapped: dict[str, str] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)
    extra: list[str] = field(default_factory=list)
    passed_over: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """True if every tensor of the network and of the file has its partner, or a reason to have none."""
        return bool(self.mapped) and not (self.missing or self.unexpected or self.misshapen)

    @property
    def place(self) -> str:
        """Place of the tensors in the file, for a sentence."""
        entry = self.key or "the top of the file"
        return f"{entry}, names in {self.prefix}" if self.prefix else entry

    def lines(self) -> list[str]:
        """Lines of the report for its readers."""
        renamed = sum(ours != theirs for ours, theirs in self.mapped.items())
        lines = [
            f"{self.file} (sha256 {self.sha256}; {self.place}): {len(self.mapped)} tensors mapped, {renamed} of them "
            "renamed"
        ]
        own = [name for name in self.kept if not is_counter(name)]
        lines += [f"kept from the configuration: {', '.join(own)}"] if own else []
        lines += [f"left out {_some(names)}: {reason}" for reason, names in self.summary()["left_out"].items()]
        lines += [f"passed over: {name}: {what}" for name, what in self.passed_over.items()]
        return lines + self.problems()

    def summary(self) -> dict[str, Any]:
        """Summary for results.json: the place in the file, the number of tensors, and what was not taken, by reason."""
        left = {why: [n for n, reason in self.ignored.items() if reason == why] for why in self.ignored.values()}
        kept = [name for name in self.kept if not is_counter(name)]
        taken = {"key": self.key, "prefix": self.prefix, "mapped": len(self.mapped), "kept": kept}
        return {**taken, "left_out": left, "extra": self.extra, "passed_over": self.passed_over}

    def problems(self) -> list[str]:
        """Reasons why the file does not fit the network."""
        groups = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": self.misshapen}
        return [f"{word} {_some(names)}" for word, names in groups.items() if names] + self.doubts


def load_weights(
    network: nn.Module,
    path: str | Path,
    *,
    key: str | None = None,
    prefix: str | None = None,
    ignore: Sequence[str] = (),
) -> Report:
    """Load the tensors of a file (.safetensors; .pt, .pth, .ckpt and the like) into `network`, all or none.

    Names may have prefixes on either side (`module.`, `model.`, a Sequential's `1.`), and differ by the synonyms of
    `tensor_names`. A file with mean and std of a normalisation needs a network with that layer. A tensor of the file
    that no tensor of the network needs is left out and listed, unless it seems to belong to a part that the network
    has. Where several state dicts fit and differ, say which: `key` is the entry of the file (`state_dict_ema`),
    `prefix` what the names in it begin with (`module.model`); `ignore` lists names or patterns (`criterion.*`) of
    tensors that are not looked at. Only tensors are read, and nothing in the file can run. Raises FileNotFoundError,
    and UserError with the report if a tensor has no partner.
    """
    sets, others = read(path)
    if key is not None and key not in sets:
        raise UserError(f"{path} has no state dict {key!r} (--weights_key); it has {_some(list(map(repr, sets)))}")
    told = {name for tensors in sets.values() for name in tensors if any(fnmatchcase(name, p) for p in ignore)}
    if unused := [p for p in ignore if not any(fnmatchcase(name, p) for name in told)]:
        raise UserError(f"no tensor of {path} is called {unused[0]!r} (--weights_ignore)")
    reports: list[Report] = []
    for entry, tensors in sets.items():
        looked_at = {name: tensor for name, tensor in tensors.items() if name not in told}
        found = _reports(network, looked_at, prefix)
        ignored = {name: "told to" for name in tensors if name in told}
        reports += [replace(r, file=Path(path).name, key=entry, ignored=r.ignored | ignored) for r in found]
    chosen = [report for report in reports if key in (None, report.key)]
    if not chosen:
        raise UserError(f"no names in {path} begin with {prefix!r} (--weights_prefix)")
    fitting = [report for report in chosen if report.fits]
    if not fitting or any(report.doubts for report in fitting):
        best = max(chosen, key=lambda report: (bool(report.doubts), len(report.mapped)))
        where = f" ({best.place})" if len(sets) > 1 else ""
        raise UserError(
            f"{path}{where} does not fit {type(network).__name__}: {'; '.join(best.problems())}. "
            "Describe the network in the YAML file as it was trained (depth, width, num_classes, mean and std); "
            "--weights_ignore leaves tensors out by name."
        )
    taken = fitting[0]
    if differ := [report for report in fitting[1:] if not _equal(sets, taken, report)]:
        places = "; ".join(report.place for report in [taken, *differ])
        raise UserError(
            f"{path} holds several weights that fit {type(network).__name__} and differ: {places}. Say which: "
            f"{'--weights_prefix' if all(r.key == taken.key for r in differ) else '--weights_key'} (in Python "
            "load_weights' key and prefix)"
        )
    own, tensors = network.state_dict(), sets[taken.key]
    with torch.no_grad():
        for ours, theirs in taken.mapped.items():
            own[ours].copy_(tensors[theirs].reshape(own[ours].shape))
    return _with_the_rest(taken, reports, sets, others)


def _reports(network: nn.Module, theirs: Tensors, prefix: str | None) -> list[Report]:
    """Reports of all places at which the tensors `theirs` fit the network; else of the one that fits best, if any."""
    ours = network.state_dict()
    layers = [name for name, module in network.named_modules() if isinstance(module, Normalize)]
    normalisers = [f"{name}.{value}" if name else value for name in layers for value in ("mean", "std")]
    found = placements([name for name in ours if name not in normalisers], list(theirs), prefix)
    reports = [_report(ours, theirs, normalisers, placement) for placement in found]
    best = max(reports, key=lambda report: len(report.mapped), default=None)
    return [report for report in reports if report.fits] or ([best] if best else [])


def _report(ours: Tensors, theirs: Tensors, normalisers: Sequence[str], place: Placement) -> Report:
    """Report of one placement, without loading anything."""
    report = Report(file="", prefix=".".join(place.start))
    pairs = dict(place.pairs)
    for name in normalisers:
        pairs |= _normaliser(name, ours[name], theirs, place, set(pairs.values()), report)
    for name, tensor in ours.items():
        if name not in pairs:
            if name in normalisers or is_counter(name):
                report.kept.append(name)
            else:
                report.missing.append(name)
        elif tensor.shape == theirs[pairs[name]].shape or (
            name in normalisers and tensor.numel() == theirs[pairs[name]].numel()
        ):
            report.mapped[name] = pairs[name]
        else:
            shapes = f"{tuple(theirs[pairs[name]].shape)}, the network {tuple(tensor.shape)}"
            report.misshapen.append(f"{name}: the file has {shapes}")
    normalised = any(name in report.mapped for name in normalisers)
    ignored, extra = {}, []
    used = set(pairs.values())
    for name in (name for name in theirs if name not in used):
        reason, expected = left_out(name, place, normalised)
        if not reason:
            report.unexpected.append(name)
            continue
        ignored[name] = reason
        extra += [] if expected else [name]
    return replace(report, ignored=ignored, extra=extra)


def _normaliser(
    name: str, own: Tensor, theirs: Tensors, place: Placement, used: set[str], report: Report
) -> dict[str, str]:
    """Partner of the buffer `name` of a normalisation: at its place, else under any name (`mu`, `new_std`)."""
    fits = [n for n, t in theirs.items() if n not in used and t.numel() == own.numel()]
    same = [n for n in fits if canonical(n) == place.start + canonical(name)[len(place.own) :]]
    same = same or [n for n in fits if canonical(n)[-1] == name.rpartition(".")[2]]
    if any(not torch.equal(theirs[n].flatten(), theirs[same[0]].flatten()) for n in same[1:]):
        report.doubts.append(
            f"{name}: the file has several that differ ({', '.join(same)}): --weights_ignore all but one"
        )
        return {}
    return {name: same[0]} if same else {}


def _equal(sets: dict[str, Tensors], one: Report, other: Report) -> bool:
    """Whether two reports take equal tensors into the network; counters of BN do not count."""
    names = [name for name in {**one.mapped, **other.mapped} if not is_counter(name)]
    return all(
        name in one.mapped
        and name in other.mapped
        and torch.equal(sets[one.key][one.mapped[name]].flatten(), sets[other.key][other.mapped[name]].flatten())
        for name in names
    )


def _with_the_rest(taken: Report, reports: list[Report], sets: dict[str, Tensors], others: list[str]) -> Report:
    """The report of what was taken, and what else there is in the file."""
    ignored, passed_over = dict(taken.ignored), {}
    for report in reports:
        if report.key == taken.key:
            twin = report.fits and report is not taken and _equal(sets, taken, report)
            why = f"equal to what was taken, under {report.prefix}"
            ignored |= {n: why for n in report.mapped.values() if twin and n not in taken.mapped.values()}
        elif report.fits:
            values = "equal" if _equal(sets, taken, report) else "other"
            passed_over[report.key] = f"it fits too, with {values} values"
    for key in sets:
        if key != taken.key:
            passed_over.setdefault(key or "the top of the file", f"{len(sets[key])} tensors, which do not fit")
    passed_over |= {name: "no tensors by name" for name in others}
    extra = [name for name in taken.extra if ignored[name] == taken.ignored[name]]
    return replace(taken, ignored=ignored, extra=extra, passed_over=passed_over)


def _some(names: list[str]) -> str:
    return f"({len(names)}): {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
