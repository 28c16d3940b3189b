"""Prints the tables of all benchmarks at the end, and puts them into --benchmark-json."""

import dataclasses

import pytest

from benchmarks.timing import interleaved, machine, rows

TABLES = pytest.StashKey[list[str]]()


@pytest.fixture
def compare(benchmark, request):
    """compare(title, steps, peers, rounds=…): times the steps side by side; peers says whom each variant is compared with."""

    def run(title, steps, peers, *, rounds):
        seconds = benchmark.pedantic(lambda: interleaved(steps, rounds=rounds), rounds=1)
        table = rows(seconds, peers)
        benchmark.extra_info.update(machine=machine(), rows=[dataclasses.asdict(row) for row in table])
        lines = [f"{title} ({machine()}; {rounds} interleaved rounds)"]
        for row in table:
            versus = ", ".join(f"{ratio:.2f}x {peer}" for peer, ratio in row.ratios.items())
            lines.append(f"  {row.name:24} {1e3 * row.median:9.2f} ms ±{100 * row.spread:3.0f}%  {versus}")
        request.config.stash.setdefault(TABLES, []).append("\n".join(lines))

    return run


def pytest_terminal_summary(terminalreporter, config):
    for table in config.stash.get(TABLES, []):
        terminalreporter.write_line(table)
