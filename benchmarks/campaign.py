"""All that a GPU can show, within a few of its minutes:

    python -m benchmarks.campaign [--out DIR] [--budget SECONDS] [--only NAME …] [--commit TEXT]

On a GPU it runs the tests marked gpu and then every benchmark, and writes into DIR (benchmarks/results by default) the record,
DEVICE.json, and what benchmarks.report.report makes of it: a table, PNG plots (where matplotlib is installed) and one HTML page.
What it measured of attention goes into the table that the library dispatches by (benchmarks.report.attention_table), with --out
into a copy of it in DIR. The tests get half of the budget at most, each benchmark what is left by then. What was cut short or had
no time is named in the record, which is written every few seconds: a campaign that is stopped leaves what it has measured.

Without a GPU it runs the benchmarks of the ops at the shapes and by the path that a CPU has, to show that all is in order. It
says that no kernel was measured, and writes files, named cpu-campaign, only where --out says so.

It needs torch, Triton, numpy and pytest; peers that are not installed are named as absent.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.environment import ROOT, describe, readings, slug
from benchmarks.report.attention_table import write_measured
from benchmarks.report.report import report, summary
from fastgen_kernels.attention.table import TABLE
from proof.record import read_json, write_json

GPU_TESTS = "gpu-tests"
_REPORTING = 20  # seconds of the budget that are kept for the report
_EXITS = {0: "complete", 1: "complete", 5: "nothing to run"}  # of pytest; 1: with failures, which are named
_SHORTEST = 5  # seconds: with less left a stage is not begun


@dataclass(frozen=True)
class Stage:
    """pytest with these arguments."""

    name: str
    pytest: tuple[str, ...]
    share: float = 1.0  # of the whole budget, at most


@dataclass
class Budget:
    """Seconds that a campaign may take, counted from here on by `clock`."""

    seconds: float
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.start = self.clock()

    def used(self) -> float:
        """Seconds since the start."""
        return self.clock() - self.start

    def left(self) -> float:
        """Seconds until the budget is used up, never below 0."""
        return max(0.0, self.seconds - self.used())


def stages(gpu: bool) -> list[Stage]:
    """The gpu tests and a stage for each file of benchmarks; on a CPU the benchmarks of ops alone."""
    files = sorted(path.name for path in (ROOT / "benchmarks").glob("bench_*.py"))
    benchmarks = [Stage(name.removeprefix("bench_").removesuffix(".py"), (f"benchmarks/{name}",)) for name in files]
    if gpu:
        return [Stage(GPU_TESTS, ("tests", "-m", "gpu", "--continue-on-collection-errors"), share=0.5), *benchmarks]
    return [stage for stage in benchmarks if stage.name != "train_step"]  # minutes on a CPU


def campaign(
    chosen: Iterable[Stage],
    budget: Budget,
    run: Callable[[Stage, float, Callable[[dict], None]], dict],
    save: Callable[[dict], None],
    record: dict[str, Any],
) -> dict[str, Any]:
    """Run the stages in turn and keep the record of them, saved after each and whenever one has something new."""
    record["stages"] = {}
    for stage in chosen:

        def progress(result: dict, name: str = stage.name) -> None:
            record["stages"][name] = result
            record["seconds"] = budget.used()
            save(record)

        seconds = min(budget.left(), stage.share * budget.seconds)
        if seconds < _SHORTEST:
            progress({"outcome": "not run: the budget was used up", "seconds": 0.0, "tests": {}, "tables": []})
        else:
            progress(run(stage, seconds, progress))
    return record


def run(stage: Stage, seconds: float, progress: Callable[[dict], None], poll: float = 5.0) -> dict:
    """pytest in a process of its own, stopped after so many seconds."""
    with tempfile.TemporaryDirectory() as folder:
        outcomes, tables = Path(folder) / "outcomes.json", Path(folder) / "tables.json"
        command = [sys.executable, "-m", "pytest", "-p", "benchmarks.harness.outcomes", "--outcomes", str(outcomes)]
        command += ["-q", "--tb=short", "-p", "no:benchmark", "-p", "no:cacheprovider", *stage.pytest]
        if stage.name != GPU_TESTS:
            command += ["--record", str(tables)]
        start = time.monotonic()

        def result(outcome: str) -> dict:
            tests = read_json(outcomes, {})
            return {
                "outcome": outcome,
                "seconds": time.monotonic() - start,
                "tests": {
                    name: "cut short" if what == "running" and outcome != "running" else what for name, what in tests.items()
                },
                "tables": read_json(tables, []),
            }

        # A group of its own, so that the compilers that torch.compile starts are stopped with it.
        process = subprocess.Popen(command, cwd=ROOT, env=_environment(), process_group=0)
        try:
            while (left := seconds - (time.monotonic() - start)) > 0:
                try:
                    code = process.wait(timeout=min(poll, left))
                except subprocess.TimeoutExpired:
                    progress(result("running"))
                else:
                    return result(_EXITS.get(code, f"pytest exited with {code}"))
            return result(f"cut short by the budget after {seconds:.0f} s")
        finally:
            _stop(process)


def _environment() -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = [str(ROOT), str(ROOT / "kernels"), *filter(None, [environment.get("PYTHONPATH")])]
    return environment | {"PYTHONPATH": os.pathsep.join(paths)}


def _stop(process: subprocess.Popen) -> None:
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, kind)
        except ProcessLookupError:
            return
        try:
            process.wait(timeout=3)
        except subprocess.TimeoutExpired:
            continue


def choose(stages: Sequence[Stage], only: Sequence[str]) -> list[Stage]:
    """Raises SystemExit for a name that no stage has."""
    names = [stage.name for stage in stages]
    if unknown := set(only) - set(names):
        raise SystemExit(f"--only: expected some of {', '.join(names)}, got {', '.join(sorted(unknown))}")
    return [stage for stage in stages if not only or stage.name in only]


def failures(record: dict[str, Any]) -> list[str]:
    """Names of the tests and benchmarks that failed, and of stages that pytest could not run."""
    tests = [name for stage in record["stages"].values() for name, what in stage["tests"].items() if what.startswith("failed")]
    return tests + [name for name, stage in record["stages"].items() if stage["outcome"].startswith("pytest exited")]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 1 where a test or benchmark failed, else 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.campaign", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="folder of the results; benchmarks/results on a GPU, none on a CPU")
    parser.add_argument("--budget", type=float, default=480.0, metavar="SECONDS", help="for everything; 480 by default")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help=f"{GPU_TESTS} or benchmarks, as philox_normal")
    parser.add_argument("--commit", help="of the code, where it is not in a git checkout")
    options = parser.parse_args(arguments)

    budget = Budget(options.budget)
    gpu = torch.cuda.is_available()
    out = options.out or (ROOT / "benchmarks/results" if gpu else None)
    record = describe(options.commit) | {"budget": options.budget, "before": readings()}
    every = stages(gpu)
    chosen = choose(every, options.only)
    record["left_out"] = {stage.name: "not asked for" for stage in every if stage not in chosen}
    if not gpu:
        record["left_out"] |= {GPU_TESTS: "no GPU", "train_step": "takes minutes on a CPU"}
    name = slug(record["device"]["name"]) if gpu else "cpu-campaign"
    save = (lambda record: write_json(out / f"{name}.json", record)) if out else (lambda record: None)

    campaign(chosen, Budget(options.budget - budget.used() - _REPORTING), run, save, record)
    record |= {"after": readings(), "seconds": budget.used()}
    save(record)
    print(summary(record))
    if out:
        table = write_measured(record, options.out / TABLE.name if options.out else TABLE) if gpu else []
        print("\n".join(report(record, out, name) + table))
    failed = failures(record)
    print(f"{budget.used():.0f} s of {options.budget:.0f} s used; {len(failed)} failures", *failed, sep="\n  ")
    return 1 if failed else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that pytest is stopped too
    sys.exit(main())
