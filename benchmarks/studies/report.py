"""docs/training.md and docs/training.png of the record that benchmarks.studies.training made:

    python -m benchmarks.studies.report

writes both again.
"""

import argparse
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import scipy.stats

from benchmarks.harness.environment import ROOT
from benchmarks.report.report import markdown
from proof.record import read_json, write

RECORD = ROOT / "benchmarks" / "results" / "training.json"
DOCS = ROOT / "docs"
TIMES = {"uniform t": "uniform", "stratified t": "stratified", "low-discrepancy t": "low_discrepancy"}
COMPARED = {"stratified t": "uniform t", "low-discrepancy t": "uniform t", "min-SNR": "uniform t", "v, min-SNR": "v"}
AVERAGED = ("uniform t", "constant lr")
UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def report(record: dict[str, Any], docs: Path) -> None:
    """Writes training.md and training.png into `docs`."""
    text = TEXT.format(
        device=record["device"]["name"],
        **record["size"],
        warmed_up=record["size"]["steps"] / (record["size"]["steps"] + 9),
        floor=f"{record['floor']:.3f}",
        times="\n".join(times_table(record)),
        results="\n".join(results_table(record)),
        averages="\n".join(averages_table(record)),
        recomputed="\n".join(recomputed_table(record)),
        **{name: record["checkpointing"][name] for name in ("weights_differ_by", "time_ratio")},
    )
    write(docs / "training.md", text)
    plot(record, docs / "training.png")


# Tables


def times_table(record: dict[str, Any]) -> list[str]:
    """How the gradient spreads under each way to draw t."""
    rows = [[name, *(spread(over_uniform(record, name, what), ".2f") for what in SPREADS)] for name in TIMES.values()]
    return markdown(["t", *(f"{what}, over uniform's" for what in SPREADS.values())], rows)


def results_table(record: dict[str, Any]) -> list[str]:
    """What each variant reaches, and its difference from the one it is compared with."""
    rows = []
    for name in dict.fromkeys(run["variant"] for run in record["runs"]):
        cells = [spread(ends(record, name, what), digits) for what, digits in METRICS.items()]
        rows.append([name, *cells, against(record, name, COMPARED[name]) if name in COMPARED else ""])
    return markdown(["training", "Fréchet distance", "agreement", "held-out loss", "Fréchet distance against"], rows)


def against(record: dict[str, Any], name: str, other: str) -> str:
    """The change of the Fréchet distance, seed by seed: its mean and the 95% interval of that (Student's t)."""
    pairs = zip(ends(record, name, "frechet"), ends(record, other, "frechet"), strict=True)
    changes = [100 * (own / others - 1) for own, others in pairs]
    mean, error = statistics.mean(changes), statistics.stdev(changes) / len(changes) ** 0.5
    low, high = scipy.stats.t.interval(0.95, len(changes) - 1, mean, error)
    return f"{other}: {mean:+.0f}% [{low:+.0f}%, {high:+.0f}%]"


def averages_table(record: dict[str, Any]) -> list[str]:
    """What each average of the weights reaches."""
    columns = [(name, what) for name in AVERAGED for what in ("frechet", "held_out")]
    rows = [
        [kind, *(spread([run["averages"][kind][what] for run in runs(record, name)], METRICS[what]) for name, what in columns)]
        for kind in kinds(record)
    ]
    header = [f"{what}, {lr}" for lr in ("cosine decay", "constant lr") for what in ("Fréchet distance", "held-out loss")]
    return markdown(["average", *header], rows)


def recomputed_table(record: dict[str, Any]) -> list[str]:
    """Bytes kept for backward, with and without recomputation."""
    kept = record["checkpointing"]["activations"]
    rows = [[name, readable(plain), readable(again), f"{again / plain:.0%}"] for name, (plain, again) in kept.items()]
    return markdown(["model", "kept", "kept with recomputation", "share"], rows)


SPREADS = {"gradient_variance": "variance of the gradient", "loss_deviation": "deviation of the loss"}
METRICS = {"frechet": ".3f", "agreement": ".3f", "held_out": ".4f"}


def runs(record: dict[str, Any], variant: str) -> list[dict[str, Any]]:
    """Of a variant, by seed."""
    return sorted((run for run in record["runs"] if run["variant"] == variant), key=lambda run: run["seed"])


def over_uniform(record: dict[str, Any], times: str, what: str) -> list[float]:
    """A spread of gradients or losses over that with uniform t, by seed."""
    found = [run["gradients"] for run in runs(record, "uniform t")]
    return [spreads[times][what] / spreads["uniform"][what] for spreads in found]


def kinds(record: dict[str, Any]) -> list[str]:
    """The averages that were compared."""
    return list(runs(record, AVERAGED[0])[0]["averages"])


def ends(record: dict[str, Any], variant: str, what: str) -> list[float]:
    """A measure of a variant after the last step, of each seed."""
    return [run["curve"][str(record["size"]["steps"])][what] for run in runs(record, variant)]


def spread(values: Sequence[float], digits: str) -> str:
    """Mean ± standard deviation over the seeds."""
    return f"{statistics.mean(values):{digits}} ± {statistics.stdev(values):{digits}}"


def readable(size: int) -> str:
    """A size in bytes, in KiB, MiB or GiB."""
    unit = max((u for u in UNITS if UNITS[u] <= size), key=UNITS.__getitem__, default="KiB")
    return f"{size / UNITS[unit]:.2f} {unit}"


# Plot


def plot(record: dict[str, Any], path: Path) -> None:
    """Writes the figure of docs/training.md."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(11, 8), layout="constrained")
    (times, drawn), (weighted, averaged) = figure.subplots(2, 2)
    for shift, (what, label) in zip((-0.1, 0.1), SPREADS.items(), strict=True):
        points = [(i + shift, ratio) for i, name in enumerate(TIMES.values()) for ratio in over_uniform(record, name, what)]
        times.plot(*zip(*points, strict=True), "o", alpha=0.6, label=label)
    times.set_xticks(range(len(TIMES)), list(TIMES.values()))
    times.set(title="Spread over batches, a dot a seed", ylabel="over that with uniform t", ylim=0)
    times.legend()
    curves(drawn, record, TIMES, "How t is drawn")
    curves(weighted, record, ("uniform t", "min-SNR", "v", "v, min-SNR"), "Weighting")
    names = kinds(record)
    for shift, (name, label) in zip((-0.1, 0.1), zip(AVERAGED, ("cosine decay", "constant lr"), strict=True), strict=True):
        values = [[run["averages"][kind]["frechet"] for run in runs(record, name)] for kind in names]
        places = [i + shift for i in range(len(names))]
        averaged.errorbar(places, *moments(values), fmt="o", capsize=3, label=label)
    averaged.set_xticks(range(len(names)), names, rotation=30, ha="right")
    averaged.set(title="Averages of the weights, at the end", ylabel="Fréchet distance")
    averaged.legend()
    for axes in (times, drawn, weighted, averaged):
        axes.grid(alpha=0.3)
    for axes in (drawn, weighted):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    figure.savefig(path, dpi=110)


def curves(axes: Any, record: dict[str, Any], names: Iterable[str], title: str) -> None:
    """Fréchet distances over steps, mean and deviation over the seeds."""
    for i, name in enumerate(names):
        steps = sorted(map(int, runs(record, name)[0]["curve"]))
        values = [[run["curve"][str(step)]["frechet"] for run in runs(record, name)] for step in steps]
        axes.errorbar([step * (1 + 0.01 * i) for step in steps], *moments(values), marker=".", capsize=3, label=name)
    axes.axhline(record["floor"], color="grey", linestyle=":", label="real digits")
    axes.set(title=title, xlabel="step", ylabel="Fréchet distance")
    axes.legend()


def moments(values: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each."""
    return [statistics.mean(v) for v in values], [statistics.stdev(v) for v in values]


TEXT = """# Training more efficiently, measured

`python -m benchmarks.studies.training` made this page, on the 8x8 digits: {seeds} trainings of a small UNet for each row, over
{steps} steps of {batch} images, each with its own initial weights, order of the data and noise, which the rows share. ± is the
standard deviation over them. {device}.

The Fréchet distance is between the pixels of {drawn} samples (DPM-Solver++(2M), 20 steps, every class alike) and of all digits;
{drawn} real digits are at {floor}. Agreement is the share of samples that a support vector machine sees as the class asked for.
The held-out loss is that of digits which no training saw, without weights and with t spread evenly, so it can be compared where
the prediction is the same. Samples and losses are of the average of decay 0.99, where nothing else is said.

![Spread of the gradient, distances over steps and averages](training.png)

## How t is drawn, and how the loss is weighted

The spread of {draws} batches' gradients at the end of training with uniform t, the same images and noise for each row:

{times}

The trainings. The first four predict the flow of `rectified_flow`, "v" and "v, min-SNR" v on `cosine`; "constant lr" is
"uniform t" without the decay of the learning rate. The last column is the change seed by seed, with its 95% interval; one
that has 0 inside shows no difference.

{results}

## Averages of the weights

Constant decays, which warm up as n / (n + 9), to {warmed_up:.3f} in these trainings, and EDM2's power functions by their relative
width:

{averages}

## Recomputing activations

`--model.checkpointing` keeps the inputs of blocks and computes the rest again in backward, block by block. After {timed} steps
the largest difference of a weight from training without it is {weights_differ_by:.1g}; a step takes {time_ratio:.2f} times as
long on this CPU. What is kept for backward, in fp32, as `fastgen.training.footprint` counts it:

{recomputed}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies.report", description=__doc__.partition(":\n")[0])
    parser.parse_args(arguments)
    report(read_json(RECORD, None), DOCS)


if __name__ == "__main__":
    main()
