"""The study of training: every number comes to be, and the page is made of them."""

import re

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from benchmarks.studies import report as study_report
from benchmarks.studies import training as study_training
from proof.record import read_json, write_json


@pytest.mark.slow
def test_a_tiny_study_and_its_page(tmp_path):
    size = study_training.Size(seeds=2, steps=1, batch=8, drawn=30, draws=3, looks=1, timed=1)
    write_json(tmp_path / "training.json", study_training.run(size))
    record = read_json(tmp_path / "training.json", None)
    study_report.report(record, tmp_path)
    text = (tmp_path / "training.md").read_text()
    assert len(record["runs"]) == 2 * len(study_training.VARIANTS)
    for name in study_training.VARIANTS:
        first, second = (run["curve"]["1"]["frechet"] for run in study_report.runs(record, name))
        assert f"| {name} | {(first + second) / 2:.3f} ± {abs(first - second) / 2**0.5:.3f} |" in text
    for kind in study_training.AVERAGES:
        assert f"| {kind} | " in text
    assert record["checkpointing"]["weights_differ_by"] == 0  # the same numbers, computed twice
    assert not re.search("nan|inf|None", text)
    assert (tmp_path / "training.png").stat().st_size > 10_000
