"""Prints the tables of all benchmarks at the end; `--record FILE` keeps them as JSON, written anew after each table."""

import dataclasses
import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from benchmarks.harness.apart import apart
from benchmarks.harness.clocks import wall
from benchmarks.harness.ops import measure
from benchmarks.harness.timing import interleaved, machine, readable, rows
from proof.record import write_json

TABLES = pytest.StashKey[list[dict]]()


def pytest_addoption(parser):
    parser.addoption("--record", type=Path, help="write the tables of all benchmarks into this JSON file")


def pytest_configure(config):
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise pytest.UsageError("benchmarks: unset TRITON_INTERPRET: the interpreter's time says nothing about a kernel")
    if not config.pluginmanager.hasplugin("benchmark"):
        config.pluginmanager.register(WithoutPytestBenchmark())


class WithoutPytestBenchmark:
    """The fixture `benchmark` where pytest-benchmark is missing: the tables need no more of it."""

    @pytest.fixture
    def benchmark(self):
        return self

    def pedantic(self, function, rounds):
        return function()


@pytest.fixture
def compare(benchmark, request):
    """compare(title, steps, peers, rounds=…): times the steps side by side; peers says whom each is compared with. With `makers`
    in the place of `steps` each is made, and then runs, in a process of its own."""

    def run(title, steps=None, peers=None, *, makers=None, rounds, absent=None):
        with (
            nullcontext({name: wall([step]) for name, step in steps.items()}) if makers is None else apart(makers) as stopwatches
        ):
            seconds = benchmark.pedantic(lambda: interleaved(stopwatches, rounds=rounds), rounds=1)
        table = {"title": title, "machine": machine(), "rounds": rounds, "clock": "wall", "absent": absent or {}}
        keep(request.config, [table | {"rows": [dataclasses.asdict(row) for row in rows(seconds, peers or {})]}])

    return run


@pytest.fixture
def measured(benchmark, request):
    """measured(case, direction, peers): an op at a case by every clock of this machine; peers as for `measure` in ops.py."""

    def run(case, direction, peers):
        keep(request.config, benchmark.pedantic(lambda: measure(case, direction, peers), rounds=1))

    return run


def keep(config, tables):
    kept = config.stash.setdefault(TABLES, [])
    kept += tables
    if (record := config.getoption("--record")) is not None:
        write_json(record, kept)


def pytest_terminal_summary(terminalreporter, config):
    for table in config.stash.get(TABLES, []):
        path = " by its reference, no kernel" if table.get("path") == "reference" else ""
        terminalreporter.write_line(
            f"{table['title']}{path} ({table['machine']}; {table['clock']}; {table['rounds']} interleaved rounds)"
        )
        for row in table["rows"]:
            versus = ", ".join(f"{ratio:.2f}x {peer}" for peer, ratio in row["ratios"].items())
            spread = f"±{100 * row['spread']:3.0f}%"
            terminalreporter.write_line(f"  {row['name']:24} {readable(row['median']):>9} {spread}  {versus}")
        for name, reason in table["absent"].items():
            terminalreporter.write_line(f"  {name:24} {'absent':>9}: {reason}")
