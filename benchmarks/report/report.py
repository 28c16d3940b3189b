"""A campaign's record as a Markdown table, PNG plots and one HTML page:

    python -m benchmarks.report.report DEVICE.json

writes them beside the record, as the campaign does at its end.
"""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.harness.timing import readable
from proof.record import read_json, write

CLOCK_NAMES = {
    "cold": "one call by the GPU's clock, its data not in the L2 cache",
    "graph": "a CUDA graph of calls on different tensors, per call",
    "wall": "the host's clock around many eager calls, per call",
}


@dataclass(frozen=True)
class Line:
    """fastgen at one case by one clock."""

    op: str
    direction: str
    shape: str
    clock: str
    path: str  # "kernel" or "reference"
    seconds: float
    spread: float
    rate: float  # bytes that have to be moved per second
    roof: str | None  # the roof that is reached last
    share: float | None  # its time over fastgen's
    peers: dict[str, float]  # a peer's time over fastgen's
    noise: dict[str, float]  # below which the difference to a peer says nothing: the larger spread of the two
    absent: dict[str, str]

    @property
    def case(self) -> str:
        """Shape and direction."""
        return f"{self.shape}, {self.direction}"

    def verdict(self, peer: str) -> Literal["win", "loss", "even"]:
        """Whether fastgen is faster than a peer by more than the spread of both."""
        ratio = self.peers[peer]
        if abs(ratio - 1) <= self.noise[peer]:
            return "even"
        return "win" if ratio > 1 else "loss"


def tables(record: dict[str, Any]) -> list[dict]:
    """The tables of all benchmarks of a campaign's record."""
    return [table for stage in record["stages"].values() for table in stage["tables"]]


def lines(record: dict[str, Any]) -> list[Line]:
    """The tables of ops, a line for each."""
    return [_line(table) for table in tables(record) if "op" in table]


def _line(table: dict) -> Line:
    rows = {row["name"]: row for row in table["rows"]}
    ours = rows["fastgen"]
    roofs = {name: ratio for name, ratio in ours["ratios"].items() if name.endswith(" roof")}
    roof = max(roofs, key=roofs.__getitem__, default=None)
    peers = {name: ratio for name, ratio in ours["ratios"].items() if name not in roofs}
    return Line(
        *(table[name] for name in ("op", "direction", "shape", "clock", "path")),
        seconds=ours["median"],
        spread=ours["spread"],
        rate=(table["read"] + table["written"]) / ours["median"],
        roof=roof,
        share=None if roof is None else roofs[roof],
        peers=peers,
        noise={name: max(ours["spread"], rows[name]["spread"]) for name in peers},
        absent=table["absent"],
    )


def peer_names(some: Sequence[Line]) -> list[str]:
    """The peers of any of the lines, in the order of their first appearance."""
    return list(dict.fromkeys(name for line in some for name in line.peers))


def verdicts(some: Sequence[Line]) -> dict[str, list[tuple[Line, str]]]:
    """The comparisons with peers, by how they end."""
    result: dict[str, list[tuple[Line, str]]] = {"win": [], "even": [], "loss": []}
    for line in some:
        for peer in line.peers:
            result[line.verdict(peer)].append((line, peer))
    return result


def by_op(some: Sequence[Line]) -> dict[str, list[Line]]:
    """The lines of each op."""
    return {op: [line for line in some if line.op == op] for op in dict.fromkeys(line.op for line in some)}


def charted(some: Sequence[Line]) -> list[Line]:
    """The lines of one clock for a plot: CUDA graphs where there are any."""
    clock = "graph" if any(line.clock == "graph" for line in some) else "wall"
    return [line for line in some if line.clock == clock]


def absences(record: dict[str, Any]) -> dict[str, list[str]]:
    """What was not measured and why, and where: each reason once."""
    found: dict[str, list[str]] = {}
    for table in tables(record):
        for name, reason in table["absent"].items():
            found.setdefault(f"{name}: {reason}", []).append(table["title"])
    return {what: list(dict.fromkeys(where)) for what, where in found.items()}


def unmeasured(record: dict[str, Any]) -> Iterator[str]:
    """Stages and benchmarks that did not run to their end, with the reason."""
    for name, reason in record["left_out"].items():
        yield f"{name}: {reason}"
    for name, stage in record["stages"].items():
        if stage["outcome"] != "complete":
            yield f"{name}: {stage['outcome']}"
        if name != "gpu-tests":
            yield from (f"{test}: {what}" for test, what in stage["tests"].items() if what != "passed")


def tests(record: dict[str, Any]) -> str:
    """How the gpu tests ended."""
    if (stage := record["stages"].get("gpu-tests")) is None:
        return f"not run: {record['left_out'].get('gpu-tests', 'not reached')}"
    counts = Counter(what.partition(":")[0] for what in stage["tests"].values())
    return f"{', '.join(f'{n} {what}' for what, n in counts.most_common()) or 'none collected'} ({stage['outcome']})"


def failed_tests(record: dict[str, Any]) -> list[str]:
    """The gpu tests that failed, each with its first line."""
    stage = record["stages"].get("gpu-tests", {"tests": {}})
    return [f"{name}: {what}" for name, what in stage["tests"].items() if what.startswith("failed")]


def facts(record: dict[str, Any]) -> dict[str, str]:
    """What was measured on, when and of which commit, by the name of each."""
    device, versions = record["device"], record["versions"]
    found = {
        "device": ", ".join(f"{name} {value}" for name, value in device.items() if name not in ("kind", "name")),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version is not None),
        "date": record["date"],
        "commit": record["commit"],
        "clocks before": ", ".join(f"{name} {value}" for name, value in record.get("before", {}).items()),
        "clocks after": ", ".join(f"{name} {value}" for name, value in record.get("after", {}).items()),
        "time": f"{record.get('seconds', 0):.0f} s of {record['budget']:.0f} s",
        "gpu tests": tests(record),
    }
    return {name: value for name, value in found.items() if value}


def warning(record: dict[str, Any]) -> str | None:
    """The note that a record of a CPU begins with; None for a GPU's."""
    if record["device"]["kind"] != "cpu":
        return None
    return "This is a CPU: no kernel was measured. The times are of the PyTorch references, at small shapes."


def summary(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    some = lines(record)
    text = [f"# {record['device']['name']}", ""]
    if note := warning(record):
        text += [note, ""]
    text += [f"- {name}: {value}" for name, value in facts(record).items()]
    text += [f"- failed: {name}" for name in failed_tests(record)]
    text += [f"- not measured: {what}" for what in unmeasured(record)]
    text += [f"- absent: {what} ({len(where)} cases)" for what, where in absences(record).items()]
    text += ["", *_verdict_text(some)]
    for op, of_op in by_op(some).items():
        text += ["", f"## {op}", "", *markdown(header(of_op), [cells(line, peer_names(of_op)) for line in of_op])]
    for table in tables(record):
        if "op" not in table:
            text += ["", f"## {table['title']}", "", *markdown(["variant", "time", "compared"], other_cells(table))]
    return "\n".join(text) + "\n"


def _verdict_text(some: Sequence[Line]) -> list[str]:
    ends = verdicts(some)
    text = [f"{len(ends['win'])} wins, {len(ends['loss'])} losses, {len(ends['even'])} even within the spread. Losses:", ""]
    return text + ([f"- {loss(line, peer)}" for line, peer in ends["loss"]] or ["- none"])


def loss(line: Line, peer: str) -> str:
    """A comparison that a peer won, as a line of text."""
    return f"{line.op}, {line.case}, {line.clock}: {line.peers[peer]:.2f}x {peer}"


def header(some: Sequence[Line]) -> list[str]:
    """The columns of a table of lines."""
    return ["case", "clock", "fastgen", "GB/s", "of its roof", *(f"x {peer}" for peer in peer_names(some))]


def cells(line: Line, peers: Sequence[str]) -> list[str]:
    """A line as a row under `header`."""
    share = "" if line.share is None else f"{100 * line.share:.0f}% ({str(line.roof).removesuffix(' roof')})"
    ratios = [f"{line.peers[peer]:.2f}" if peer in line.peers else "" for peer in peers]
    time = f"{readable(line.seconds)} ±{100 * line.spread:.0f}%"
    return [
        line.case,
        line.clock,
        time,
        f"{line.rate / 1e9:.0f}" if line.rate >= 1e10 else f"{line.rate / 1e9:.2f}",
        share,
        *ratios,
    ]


def other_cells(table: dict) -> list[list[str]]:
    """The rows of a table that is not of an op."""
    return [
        [
            row["name"],
            f"{readable(row['median'])} ±{100 * row['spread']:.0f}%",
            ", ".join(f"{ratio:.2f}x {peer}" for peer, ratio in row["ratios"].items()),
        ]
        for row in table["rows"]
    ]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown, line by line."""
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def report(record: dict[str, Any], out: Path, name: str) -> list[str]:
    """Write NAME.md, NAME.html and, where matplotlib is installed, NAME-OP.png into `out`; says what it wrote."""
    from benchmarks.report.page import page

    write(out / f"{name}.md", summary(record))
    write(out / f"{name}.html", page(record))
    wrote = [f"wrote {out / name}.md, .html"]
    try:
        from benchmarks.report.plots import plot
    except ImportError as error:
        return [*wrote, f"no PNG plots: matplotlib is not installed ({error})"]
    for op, of_op in by_op(lines(record)).items():
        plot(of_op, out / f"{name}-{op}.png", f"{op} on {record['device']['name']}")
        wrote.append(f"wrote {out / name}-{op}.png")
    return wrote


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report.report", description=__doc__.partition(":\n")[0])
    parser.add_argument("record", type=Path, help="DEVICE.json of a campaign")
    path = parser.parse_args(arguments).record
    if not path.is_file():
        parser.error(f"record: expected a file, got {str(path)!r}")
    print("\n".join(report(read_json(path, None), path.parent, path.stem)))


if __name__ == "__main__":
    main()
