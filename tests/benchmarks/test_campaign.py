"""The campaign: what it gives its stages, what it keeps of them, and what is made of the record."""

import json
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks import campaign, conftest
from benchmarks.campaign import Budget, Stage
from benchmarks.harness import environment
from benchmarks.report.report import lines, report, summary, verdicts
from fastgen_kernels.attention.table import read
from proof.record import read_json, write_json


def finished(**parts):
    return {"outcome": "complete", "seconds": 1.0, "tests": {}, "tables": []} | parts


def test_the_budget_goes_to_stages_in_turn_and_what_has_none_left_is_named():
    now, given, saved = 0.0, {}, []

    def run(stage, seconds, progress):
        nonlocal now
        given[stage.name] = seconds
        now += {"tests": 30, "a": 50, "b": 100}[stage.name]
        progress(finished(outcome="running"))
        return finished()

    chosen = [Stage("tests", (), share=0.5), Stage("a", ()), Stage("b", ()), Stage("c", ())]
    record = campaign.campaign(
        chosen, Budget(100, lambda: now), run, lambda record: saved.append(json.loads(json.dumps(record))), {"left_out": {}}
    )
    assert given == {"tests": 50, "a": 70, "b": 20}
    assert record["stages"]["c"]["outcome"] == "not run: the budget was used up"
    assert saved[0]["stages"] == {"tests": finished(outcome="running")}
    assert saved[-1] == record


def test_stages_are_chosen_by_name():
    stages = campaign.stages(gpu=True)
    assert stages[0].name == "gpu-tests"
    assert {"philox_normal", "reparameterize_kl", "train_step"} < {stage.name for stage in stages}
    assert [stage.name for stage in campaign.choose(stages, ["train_step"])] == ["train_step"]
    assert campaign.choose(stages, []) == stages
    with pytest.raises(SystemExit, match=r"--only: expected some of gpu-tests, .*, got philox"):
        campaign.choose(stages, ["philox"])


TESTS = """
import pathlib, pytest, time
def test_passes(): pass
def test_fails(): assert 1 == 2, "one is not two"
def test_is_skipped(): pytest.skip("needs a GPU")
def test_waits():
    pathlib.Path(__file__).with_name("waiting").touch()
    time.sleep(600)
def test_comes_last(): pass
"""


def test_a_stage_is_stopped_at_its_limit_and_says_what_became_of_each_test(tmp_path, monkeypatch):
    file = tmp_path / "test_some.py"
    file.write_text(TESTS)
    reports, begun = [], time.monotonic()

    def clock():
        """The limit comes when the test that waits is reported, however long pytest took to reach it."""
        running = {name for result in reports for name, what in result["tests"].items() if what == "running"}
        reached = any("test_waits" in name for name in running) and (tmp_path / "waiting").exists()
        return 8.0 if reached or time.monotonic() - begun > 300 else 0.0

    monkeypatch.setattr(campaign, "time", SimpleNamespace(monotonic=clock))
    result = campaign.run(Stage("gpu-tests", (str(file), f"--rootdir={tmp_path}")), 8.0, reports.append, poll=0.1)
    assert (tmp_path / "waiting").exists()
    assert result["outcome"] == "cut short by the budget after 8 s"
    assert {name.partition("::")[2]: what for name, what in result["tests"].items()} == {
        "test_passes": "passed",
        "test_fails": "failed: AssertionError: one is not two",
        "test_is_skipped": "skipped: needs a GPU",
        "test_waits": "cut short",
        "test_comes_last": "not run",
    }
    assert reports[-1]["outcome"] == "running"
    assert "test_waits" in str(reports[-1]["tests"])


def test_a_stage_that_pytest_cannot_run_says_so(tmp_path):
    (tmp_path / "test_broken.py").write_text("import a_package_that_does_not_exist")
    result = campaign.run(Stage("gpu-tests", (str(tmp_path), f"--rootdir={tmp_path}")), 60.0, lambda result: None)
    assert result["outcome"] == "pytest exited with 2"
    assert [what for what in result["tests"].values() if "a_package_that_does_not_exist" in what]
    assert campaign.failures({"stages": {"gpu-tests": result}})[-1] == "gpu-tests"


@pytest.fixture
def played(monkeypatch):
    """A campaign whose one stage takes no time, on whichever device the test says."""

    def play(device, tests):
        stage = Stage("some_op", ())
        monkeypatch.setattr(torch.cuda, "is_available", lambda: device["kind"] == "cuda")
        monkeypatch.setattr(campaign, "describe", lambda commit: environment.describe("abc") | {"device": device})
        monkeypatch.setattr(campaign, "readings", dict)
        monkeypatch.setattr(campaign, "stages", lambda gpu: [stage])
        monkeypatch.setattr(campaign, "run", lambda *_: finished(tests=tests, tables=[op_table("wall", {"eager": 2.0})]))

    monkeypatch.setattr(environment, "device", dict)
    return play


def test_a_campaign_on_a_gpu_is_named_after_it(played, tmp_path, capsys):
    played({"kind": "cuda", "name": "NVIDIA H200"}, {"b.py::x": "passed"})
    assert campaign.main(["--out", str(tmp_path)]) == 0
    assert {"nvidia-h200.json", "nvidia-h200.md", "nvidia-h200.html"} <= {path.name for path in tmp_path.iterdir()}
    record = read_json(tmp_path / "nvidia-h200.json", None)
    assert (record["commit"], record["budget"], record["left_out"]) == ("abc", 480.0, {})
    assert record["stages"]["some_op"]["tests"] == {"b.py::x": "passed"}
    assert "0 failures" in capsys.readouterr().out


@pytest.mark.parametrize("out", [True, False])
def test_a_campaign_on_a_gpu_writes_where_attention_takes_its_kernels(played, tmp_path, monkeypatch, capsys, out):
    """Into the library, with --out into a copy there."""
    table = tmp_path / ("out" if out else "library") / "faster.csv"
    played({"kind": "cuda", "name": "NVIDIA H200", "capability": "9.0"}, {})
    shape = "UNet 128x8x64x32 bfloat16 channels_last"
    of_attention = [
        op_table("graph", {"eager": 0.5}, op="attention_qkv", shape=shape, direction=d) for d in ("forward", "backward")
    ]
    monkeypatch.setattr(campaign, "run", lambda *_: finished(tables=of_attention))
    monkeypatch.setattr(campaign, "TABLE", tmp_path / "library" / "faster.csv")
    monkeypatch.setattr(campaign, "ROOT", tmp_path)
    assert campaign.main(["--out", str(tmp_path / "out")] if out else []) == 0
    assert [path for path in tmp_path.rglob("faster.csv")] == [table]
    (row,) = (row for row in read(table) if row.source.startswith("NVIDIA H200, torch ") and row.forward == 0.5)
    assert (row.at, row.faster) == (("9.0", 16, 32, 64), "SDPA")
    assert f"wrote {table}: 1 classes measured" in capsys.readouterr().out


def test_a_campaign_on_a_cpu_writes_only_where_it_is_told_to(played, tmp_path, monkeypatch, capsys):
    played({"kind": "cpu", "name": "a CPU"}, {"b.py::x": "failed: 3 is not 4"})
    monkeypatch.setattr(campaign, "write_json", lambda *_: pytest.fail("wrote a file"))
    assert campaign.main([]) == 1
    out = capsys.readouterr().out
    assert "no kernel was measured" in out
    assert "gpu-tests: no GPU" in out
    assert "1 failures\n  b.py::x" in out
    monkeypatch.undo()
    played({"kind": "cpu", "name": "a CPU"}, {})
    assert campaign.main(["--out", str(tmp_path)]) == 0
    assert (tmp_path / "cpu-campaign.json").exists()


def test_nvidia_smi_is_asked_and_its_absence_borne(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.nvidia_smi("clocks.sm") == {}
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "1980 MHz, 580.1"\n')
    tool.chmod(0o755)
    assert environment.nvidia_smi("clocks.sm", "driver_version") == {"clocks.sm": "1980 MHz", "driver_version": "580.1"}
    assert environment.nvidia_smi("one", "two", "three") == {}


def test_a_stage_whose_needs_are_not_installed_says_so(tmp_path):
    (tmp_path / "test_needy.py").write_text("import pytest; pytest.importorskip('a_package_that_does_not_exist')")
    result = campaign.run(Stage("gpu-tests", (str(tmp_path), f"--rootdir={tmp_path}")), 60.0, lambda result: None)
    assert result["outcome"] == "nothing to run"
    (what,) = result["tests"].values()
    assert what.startswith("skipped: could not import 'a_package_that_does_not_exist'")
    assert campaign.failures({"stages": {"gpu-tests": result}}) == []


def test_a_file_that_is_written_is_whole_and_alone(tmp_path):
    write_json(tmp_path / "deep" / "record.json", [1])
    write_json(tmp_path / "deep" / "record.json", [1, 2])
    assert read_json(tmp_path / "deep" / "record.json", None) == [1, 2]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["record.json"]
    assert read_json(tmp_path / "missing.json", {}) == {}


def test_the_device_and_the_versions_are_described():
    record = environment.describe("a commit")
    assert record["commit"] == "a commit"
    assert record["versions"]["torch"] == torch.__version__
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record["date"])
    assert environment.slug("NVIDIA H200") == "nvidia-h200"
    assert environment.slug("NVIDIA GeForce RTX 4090 (Laptop)") == "nvidia-geforce-rtx-4090-laptop"
    json.dumps(record)


# --- the report


def op_table(clock, ratios, *, spread=0.02, **parts):
    row = {"median": 1e-3, "spread": spread, "ratios": {}}
    return {
        "title": "some_op forward, small 8x8 float32",
        "machine": "a machine",
        "op": "some_op",
        "shape": "small 8x8 float32",
        "direction": "forward",
        "clock": clock,
        "path": "kernel",
        "kernels": ["some_kernel"],
        "read": 2_000_000,
        "written": 1_000_000,
        "calls": 4,
        "rounds": 30,
        "absent": {"diffusers": "not installed (No module named 'diffusers')"},
        "rows": [row | {"name": "fastgen", "ratios": ratios}, *(row | {"name": name} for name in ratios)],
    } | parts


RATIOS = {"eager": 4.0, "torch.compile": 0.8, "reference <b>": 1.01, "copy roof": 0.9, "launch roof": 0.1}


@pytest.fixture
def record():
    other = {"title": "A training step", "clock": "wall", "rounds": 10, "absent": {}}
    other["rows"] = [{"name": "fastgen fp32", "median": 0.5, "spread": 0.1, "ratios": {"diffusers": 1.25}}]
    return {
        "device": {"kind": "cuda", "name": "SOME GPU", "driver_version": "1.2.3"},
        "versions": {"torch": "2.11.0", "diffusers": None},
        "date": "2000-01-01T00:00:00+00:00",
        "commit": "abc",
        "before": {"clocks.sm": "345 MHz"},
        "after": {"clocks.sm": "1980 MHz"},
        "budget": 480.0,
        "seconds": 100.0,
        "left_out": {"other_op": "not asked for"},
        "stages": {
            "gpu-tests": finished(tests={"tests/a.py::x": "passed", "tests/a.py::y": "failed: 3 is not 4"}),
            "some_op": finished(tables=[op_table("graph", RATIOS), op_table("wall", {"eager": 2.0})]),
            "train_step": finished(outcome="cut short by the budget after 9 s", tests={"b.py::z": "cut short"}, tables=[other]),
        },
    }


def test_lines_have_rates_shares_and_verdicts(record):
    graph, wall = lines(record)
    assert (graph.rate, graph.roof, graph.share) == (pytest.approx(3e9), "copy roof", 0.9)
    assert (wall.roof, wall.share) == (None, None)
    assert {peer: graph.verdict(peer) for peer in graph.peers} == {
        "eager": "win",
        "torch.compile": "loss",
        "reference <b>": "even",
    }
    assert [(line.clock, peer) for line, peer in verdicts([graph, wall])["win"]] == [("graph", "eager"), ("wall", "eager")]


def test_the_summary_names_losses_failures_and_what_is_missing(record):
    text = summary(record)
    for part in (
        "# SOME GPU",
        "driver_version 1.2.3",
        "torch 2.11.0",
        "clocks.sm 1980 MHz",
        "1 passed, 1 failed (complete)",
        "failed: tests/a.py::y: failed: 3 is not 4",
        "not measured: other_op: not asked for",
        "not measured: train_step: cut short by the budget after 9 s",
        "not measured: b.py::z: cut short",
        "absent: diffusers: not installed (No module named 'diffusers') (1 cases)",
        "2 wins, 1 losses, 1 even",
        "- some_op, small 8x8 float32, forward, graph: 0.80x torch.compile",
        "| small 8x8 float32, forward | graph | 1.00 ms ±2% | 3.00 | 90% (copy) | 4.00 | 0.80 | 1.01 |",
        "| small 8x8 float32, forward | wall | 1.00 ms ±2% | 3.00 |  | 2.00 |  |  |",
        "| fastgen fp32 | 500 ms ±10% | 1.25x diffusers |",
    ):
        assert part in text
    assert "no kernel was measured" not in text


def test_a_cpu_says_that_no_kernel_was_measured(record):
    record["device"]["kind"] = "cpu"
    assert "This is a CPU: no kernel was measured." in summary(record)


def test_the_page_needs_nothing_beside_it(record, tmp_path):
    report(record, tmp_path, "some-gpu")
    page = (tmp_path / "some-gpu.html").read_text()
    assert page.startswith("<!doctype html>")
    assert not re.search(r"<script|<link|<img|<iframe|@import|url\(|\b(src|href)\s*=|https?:", page)
    assert "prefers-color-scheme: dark" in page
    assert page.count("<svg") == 2  # ratios and shares
    assert "reference &lt;b&gt;" in page
    assert "<b>0" not in page
    assert '<span class="loss">0.80</span>' in page
    assert '<span class="win">4.00</span>' in page
    for tag in ("details", "dl", "svg", "table", "text", "span", "div"):
        assert len(re.findall(rf"<{tag}[ >]", page)) == page.count(f"</{tag}>"), tag


def test_plots_are_pictures(record, tmp_path):
    pytest.importorskip("matplotlib")
    wrote = report(record, tmp_path, "some-gpu")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["some-gpu-some_op.png", "some-gpu.html", "some-gpu.md"]
    assert (tmp_path / "some-gpu-some_op.png").read_bytes().startswith(b"\x89PNG")
    assert wrote[-1].endswith("some-gpu-some_op.png")


def test_without_matplotlib_it_says_so(record, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "benchmarks.report.plots", raising=False)
    assert "no PNG plots: matplotlib is not installed" in report(record, tmp_path, "some-gpu")[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["some-gpu.html", "some-gpu.md"]


def test_an_empty_record_is_reported_too(record, tmp_path):
    record["stages"] = {}
    report(record, tmp_path, "some-gpu")
    assert "gpu tests: not run: not reached" in (tmp_path / "some-gpu.md").read_text()


def test_benchmarks_refuse_the_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(pytest.UsageError, match="unset TRITON_INTERPRET"):
        conftest.pytest_configure(None)


def test_benchmarks_run_without_pytest_benchmark(tmp_path):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:benchmark", "-p", "no:cacheprovider"]
    command += ["benchmarks/bench_philox_normal.py", "-k", "latents", "--record", str(tmp_path / "tables.json")]

    finished = subprocess.run(
        command, cwd=campaign.ROOT, env=campaign._environment(), capture_output=True, text=True, timeout=120
    )
    assert finished.returncode == 0, finished.stdout
    tables = read_json(tmp_path / "tables.json", [])
    assert {table["title"] for table in tables} == {"philox_normal forward, latents 32x4x64x64 bfloat16"}
    assert tables[-1]["path"] == ("kernel" if torch.cuda.is_available() else "reference")
