"""A paper's models from elsewhere, and those made of several trainings: what they wait for and depend on."""

from pathlib import Path

import pytest

from adversarial_lightning.reproduce.papers import digests
from adversarial_lightning.reproduce.papers.paper import Training, trainings
from adversarial_lightning.reproduce.papers.plan import Fit, Places

_TRAININGS = """
base: {experiment: quickstart_standard}
more: {experiment: quickstart_standard, arguments: [--model.init_args.classifier, "{base}"], needs: [base]}
both: {model: [--checkpoint, "{base}", --other, "{more}"], needs: [base, more]}
free: {model: [--weights, "{data}/w.safetensors"]}
"""


@pytest.fixture
def places(tmp_path: Path) -> Places:
    (tmp_path / "papers" / "trainings").mkdir(parents=True)
    (tmp_path / "papers" / "trainings" / "some.yaml").write_text(_TRAININGS)
    return Places(tmp_path / "runs", tmp_path / "results", tmp_path / "data", tmp_path / "papers")


def test_a_model_is_there_when_what_it_needs_is(places: Places) -> None:
    base, more, both, free = (_fit(name, places) for name in ("base", "more", "both", "free"))
    assert [fit.state for fit in (base, more, both, free)] == ["to do", "to do", "to do", "done"]
    for fit in (base, more):
        fit.folder.mkdir(parents=True)
        (fit.folder / "done").touch()
    assert [fit.state for fit in (base, more, both, free)] == ["done"] * 4
    assert both.model_words == ["--checkpoint", str(base.checkpoint), "--other", str(more.checkpoint)]
    assert free.model_words == ["--weights", f"{places.data}/w.safetensors"]


def test_what_a_model_needs_is_part_of_its_settings(places: Places) -> None:
    before = _fit("both", places).settings
    path = places.papers / "trainings" / "some.yaml"
    path.write_text(path.read_text().replace("base: {experiment: quickstart_standard", "base: {experiment: quickstart"))
    trainings.cache_clear()
    assert _fit("both", places).settings != before


def test_classes_in_words_of_a_command_line_are_code() -> None:
    word = "[{class_path: Purified, init_args: {purifier: {class_path: Median, init_args: {size: 3}}}}]"
    assert digests.code([word]) == digests.code([{"class_path": "Purified"}, {"class_path": "Median"}])
    assert digests.code([word]) != digests.code(["--limit"])


def _fit(name: str, places: Places) -> Fit:
    training: Training = trainings(places.papers)[name]
    return Fit(name, training, 0, places)
