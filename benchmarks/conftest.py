"""Prints the tables of all benchmarks at the end; `--record FILE` keeps them as JSON."""

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks.timing import interleaved, machine, rows

TABLES = pytest.StashKey[list[dict]]()


def pytest_addoption(parser):
    parser.addoption("--record", type=Path, help="write the tables of all benchmarks into this JSON file")


@pytest.fixture
def compare(benchmark, request):
    """compare(title, steps, peers, rounds=…): times the steps side by side; peers says whom each is compared with."""

    def run(title, steps, peers, *, rounds):
        seconds = benchmark.pedantic(lambda: interleaved(steps, rounds=rounds), rounds=1)
        table = {"title": title, "machine": machine(), "rounds": rounds, "rows": rows(seconds, peers)}
        request.config.stash.setdefault(TABLES, []).append(table)

    return run


def pytest_terminal_summary(terminalreporter, config):
    for table in config.stash.get(TABLES, []):
        terminalreporter.write_line(f"{table['title']} ({table['machine']}; {table['rounds']} interleaved rounds)")
        for row in table["rows"]:
            versus = ", ".join(f"{ratio:.2f}x {peer}" for peer, ratio in row.ratios.items())
            terminalreporter.write_line(f"  {row.name:24} {1e3 * row.median:9.2f} ms ±{100 * row.spread:3.0f}%  {versus}")


def pytest_sessionfinish(session):
    record, tables = session.config.getoption("--record"), session.config.stash.get(TABLES, [])
    if record is not None and tables:
        record.parent.mkdir(parents=True, exist_ok=True)
        plain = [table | {"rows": [dataclasses.asdict(row) for row in table["rows"]]} for table in tables]
        record.write_text(json.dumps(plain, indent=1) + "\n")
