"""`fastgen train PRESET [--out RUN] [--config FILE] [--resume] [OPTIONS]`"""

import argparse
import sys
from pathlib import Path
from typing import Annotated

import tyro

from fastgen.config import TrainConfig
from fastgen.config_file import load_yaml
from fastgen.errors import lookup
from fastgen.presets import PRESETS

USAGE = f"""usage: fastgen train PRESET [--out RUN] [--config FILE] [--resume] [OPTIONS]

Presets: {", ".join(PRESETS)}. `fastgen train PRESET --help` has its options.

--out RUN      the run's folder; runs/PRESET when not given
--config FILE  settings as YAML over the preset; options go over both
--resume       go on from the last checkpoint in RUN, with the settings it was started with"""


def main(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    preset = arguments[0]
    base = lookup("preset", preset, PRESETS)
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--out", type=Path, default=Path("runs") / preset)
    own.add_argument("--config", type=Path)
    own.add_argument("--resume", action="store_true")
    run, rest = own.parse_known_args(arguments[1:])

    if run.resume:
        base = load_yaml(run.out / "config.yaml", base)
    if run.config is not None:
        base = load_yaml(run.config, base)
    config = tyro.cli(
        Annotated[TrainConfig, tyro.conf.AvoidSubcommands],
        args=rest,
        default=base,
        prog=f"fastgen train {preset}",
        description=USAGE,
    )
    _train(config, run.out, run.resume, preset)


def _train(config: TrainConfig, out: Path, resume: bool, preset: str) -> None:
    from fastgen.train import train  # torch takes a second to import: after the options are known to be right

    outcome = train(config, out, resume=resume)
    if outcome.step < config.steps:
        print(
            f"stopped and saved at step {outcome.step} of {config.steps}; to go on: fastgen train {preset} --out {out} --resume"
        )
        if outcome.signal is not None:
            sys.exit(128 + outcome.signal)
    else:
        print(f"{out}: samples/{outcome.step:08d}.png, loss.png; to draw more: fastgen sample {out}")
