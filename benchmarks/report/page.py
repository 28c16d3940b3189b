"""A campaign's record as one HTML page that needs nothing beside it: inline style and SVG, no script, light and dark."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from benchmarks.report.report import (
    CLOCK_NAMES,
    Line,
    absences,
    by_op,
    cells,
    charted,
    facts,
    failed_tests,
    header,
    lines,
    loss,
    other_cells,
    peer_names,
    tables,
    unmeasured,
    verdicts,
    warning,
)

STYLE = """
:root { color-scheme: light dark; --text: #1c1f23; --faint: #59636e; --back: #ffffff; --rule: #d8dde3; --zone: #b3261e14;
  --loss: #b3261e; --win: #1a7f37; --peer0: #4269d0; --peer1: #c98a04; --peer2: #8e4fe0; --peer3: #2b9a8c; --share: #7d8792; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e9ed; --faint: #9aa4af; --back: #14171a; --rule: #333a42;
  --zone: #ff8a8020; --loss: #ff8a80; --win: #6fdd8b; --peer0: #8aa6ff; --peer1: #efb118; --peer2: #c09bff; --peer3: #6cc5b0; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 68rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-top: 1px solid var(--rule); padding-top: 1rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; } dt { color: var(--faint); } dd { margin: 0; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; white-space: nowrap; }
td, th { padding: 2px 10px; text-align: right; border-bottom: 1px solid var(--rule); font-variant-numeric: tabular-nums; }
td:first-child, th:first-child, td:nth-child(2), th:nth-child(2) { text-align: left; } th { color: var(--faint); }
.loss { color: var(--loss); } .win { color: var(--win); } .warning { border-left: 4px solid var(--loss); padding-left: 1rem; }
.faint { color: var(--faint); } svg { max-width: 100%; height: auto; font: 11px system-ui, sans-serif; fill: var(--text); }
svg .faint { fill: var(--faint); } svg .loss { fill: var(--loss); } svg line { stroke: var(--rule); }
svg line.one { stroke: var(--text); } svg .zone { fill: var(--zone); }
"""

LABELS, WIDTH, BAR = 400, 640, 13  # pixels: of the cases' names, of a plot's bars, of a bar's height


def page(record: dict[str, Any]) -> str:
    """The HTML page of a campaign's record."""
    some, name = lines(record), escape(f"fastgen on {record['device']['name']}")
    ends = verdicts(some)
    body = [f"<h1>{name}</h1>"]
    if note := warning(record):
        body.append(f'<p class="warning">{escape(note)}</p>')
    body.append(f"<dl>{''.join(f'<dt>{escape(k)}</dt><dd>{escape(v)}</dd>' for k, v in facts(record).items())}</dl>")
    body.append(
        f'<p><b class="win">{len(ends["win"])} wins</b>, <b class="loss">{len(ends["loss"])} losses</b>, {len(ends["even"])} '
        "even within the spread, counted over cases, clocks and peers. A ratio is the peer's time over fastgen's: above 1, "
        "fastgen is faster. ± is the interquartile range over the median.</p>"
    )
    body.append(_details("Losses", [loss(line, peer) for line, peer in ends["loss"]], open=True))
    body.append(_details("Failed tests", failed_tests(record), open=True))
    body.append(_details("Not measured", list(unmeasured(record))))
    body.append(_details("Absent", [f"{what} ({len(where)} cases)" for what, where in absences(record).items()]))
    if some:
        clocks = dict.fromkeys(line.clock for line in some)
        body.append(f"<dl>{''.join(f'<dt>{clock}</dt><dd>{escape(CLOCK_NAMES[clock])}</dd>' for clock in clocks)}</dl>")
    for op, of_op in by_op(some).items():
        peers = peer_names(of_op)
        body += [f"<h2>{escape(op)}</h2>", *_charts(charted(of_op), peers)]
        body.append(_table(header(of_op), [_marked(line, peers) for line in of_op]))
    for table in tables(record):
        if "op" not in table:
            rows = [[escape(cell) for cell in row] for row in other_cells(table)]
            body += [f"<h2>{escape(table['title'])}</h2>", _table(["variant", "time", "compared"], rows)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{name}</title><style>{STYLE}</style></head>\n<body>\n" + "\n".join(filter(None, body)) + "\n</body></html>\n"
    )


def _details(title: str, entries: Sequence[str], *, open: bool = False) -> str:
    if not entries:
        return ""
    listed = "".join(f"<li>{escape(entry)}</li>" for entry in entries)
    return f"<details{' open' * open}><summary>{escape(title)}: {len(entries)}</summary><ul>{listed}</ul></details>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """rows: cells of HTML."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _marked(line: Line, peers: Sequence[str]) -> list[str]:
    plain = [escape(cell) for cell in cells(line, peers)]
    first = len(plain) - len(peers)
    for i, peer in enumerate(peers, first):
        if peer in line.peers and (verdict := line.verdict(peer)) != "even":
            plain[i] = f'<span class="{verdict}">{plain[i]}</span>'
    return plain


def _charts(shown: Sequence[Line], peers: Sequence[str]) -> list[str]:
    charts = []
    if peers:
        charts.append(f'<p class="faint">Times as fast as each peer, {escape(CLOCK_NAMES[shown[0].clock])}. {_legend(peers)}</p>')
        charts.append(_ratios(shown, peers))
    if any(line.share is not None for line in shown):
        roof = "the longest of a copy of the same bytes, an empty launch and the integers of the noise, over fastgen's time"
        charts.append(f'<p class="faint">Share of the roof: {roof}.</p>')
        charts.append(_shares(shown))
    return charts


def _legend(peers: Sequence[str]) -> str:
    return " ".join(f'<span style="color: var(--peer{i % 4})">■ {escape(peer)}</span>' for i, peer in enumerate(peers))


def _ratios(shown: Sequence[Line], peers: Sequence[str]) -> str:
    ratios = [math.log2(ratio) for line in shown for ratio in line.peers.values()]
    low, high = min([-1.0, *ratios]) - 0.4, max([1.0, *ratios]) + 0.8

    def x(log_ratio: float) -> float:
        return LABELS + WIDTH * (log_ratio - low) / (high - low)

    rows, y = [], 18.0
    for line in shown:
        rows.append(
            f'<text x="{LABELS - 8}" y="{y + BAR * len(line.peers) / 2 + 4:.0f}" text-anchor="end">{escape(line.case)}</text>'
        )
        for peer, ratio in line.peers.items():
            end, color = x(math.log2(ratio)), f"var(--peer{peers.index(peer) % 4})"
            rows.append(_bar(min(end, x(0)), y, abs(end - x(0)), color, f"{line.case}: {ratio:.2f}x {peer}"))
            side = f'x="{end + 4:.1f}"' if ratio >= 1 else f'x="{end - 4:.1f}" text-anchor="end" class="loss"'
            rows.append(f'<text {side} y="{y + BAR - 3:.0f}">{ratio:.2f}x</text>')
            y += BAR
        y += 8
    ticks = [
        f'<line x1="{x(t):.1f}" x2="{x(t):.1f}" y1="14" y2="{y:.0f}" class="{"one" if t == 0 else ""}"/>'
        f'<text x="{x(t):.1f}" y="10" text-anchor="middle" class="faint">{2.0**t:g}x</text>'
        for t in range(math.ceil(low), math.floor(high) + 1)
    ]
    zone = f'<rect class="zone" x="{LABELS}" y="14" width="{x(0) - LABELS:.1f}" height="{y - 14:.0f}"/>'
    return _svg(y, [zone, *ticks, *rows])


def _shares(shown: Sequence[Line]) -> str:
    with_roof = [(line, line.share) for line in shown if line.share is not None]
    longest = max([1.0, *(share for _, share in with_roof)])
    full = WIDTH / (longest + 0.3)
    rows, y = [], 18.0
    for line, share in with_roof:
        text = f"{100 * share:.0f}% of {line.roof}"
        rows.append(f'<text x="{LABELS - 8}" y="{y + 10:.0f}" text-anchor="end">{escape(line.case)}</text>')
        rows.append(_bar(LABELS, y, full * share, "var(--share)", f"{line.case}: {text}"))
        rows.append(f'<text x="{LABELS + full * longest + 6:.1f}" y="{y + 10:.0f}">{escape(text)}</text>')
        y += BAR + 5
    x = LABELS + full
    one = f'<line class="one" x1="{x:.1f}" x2="{x:.1f}" y1="14" y2="{y:.0f}"/>'
    return _svg(y, [*rows, one, f'<text x="{x:.1f}" y="10" text-anchor="middle">100%</text>'])


def _bar(x: float, y: float, width: float, color: str, title: str) -> str:
    shape = f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{BAR - 2}" style="fill: {color}">'
    return f"{shape}<title>{escape(title)}</title></rect>"


def _svg(height: float, parts: Sequence[str]) -> str:
    width = LABELS + WIDTH
    return (
        f'<div class="scroll"><svg width="{width}" viewBox="0 0 {width} {height + 6:.0f}" role="img">{"".join(parts)}</svg></div>'
    )
