"""`fastgen train PRESET [--out RUN] [--config FILE] [--init-from PATH] [--resume] [OPTIONS]`"""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from fastgen.config.files import load_yaml
from fastgen.config.presets import DESCRIPTIONS, PRESETS
from fastgen.config.schema import TrainConfig
from fastgen.errors import expect, lookup
from fastgen.interchange.init_from import starting_from

USAGE = f"""usage: fastgen train PRESET [--out RUN] [--config FILE] [--init-from PATH] [--resume] [OPTIONS]
       fastgen train --out RUN --resume [OPTIONS]

Presets:
{chr(10).join(f"  {name:18}{text}" for name, text in DESCRIPTIONS.items())}

`fastgen train PRESET --help` has its options."""


@dataclass(frozen=True)
class RunOptions:
    """The options that say which run it is and where its settings come from."""

    out: Path
    """The run's folder."""
    config: Path | None = None
    """Settings as YAML over the preset; options go over both."""
    init_from: Path | None = None
    """Start from the weights of a run of the same model, or from a UNet that diffusers wrote: in the folder of a pipeline, with
    unet/ and scheduler/, or of a model alone, whose diffusion.schedule and diffusion.prediction the settings must say."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on from the last checkpoint in the run's folder, with the settings it was started with."""


@dataclass(frozen=True)
class TrainOptions(RunOptions):
    """Train a preset. Settings come from it, then from --config, then from the options below."""

    settings: Annotated[TrainConfig, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands] = field(kw_only=True)


def main(arguments: list[str]) -> None:
    """Trains a preset, or prints the usage. arguments: those after `fastgen train`. Raises ValueError for a preset, a file or a
    setting that is not known, and as `fastgen.training.train.train` does."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    preset: str | None
    if arguments[0].startswith("-") and "--resume" in arguments:  # the run knows its settings
        preset, prog, given, out = None, "fastgen train", arguments, Path()
    else:
        preset, prog, given, out = arguments[0], f"fastgen train {arguments[0]}", arguments[1:], Path("runs") / arguments[0]
    settings = TrainConfig() if preset is None else lookup("preset", preset, PRESETS)
    run, _ = tyro.cli(RunOptions, args=given, default=RunOptions(out), prog=prog, add_help=False, return_unknown_args=True)
    if run.resume:
        kept = run.out / "config.yaml"
        expect("resume", str(run.out), kept.is_file(), "the folder of a run, with its config.yaml")
        settings = load_yaml(kept)
    if run.config is not None:
        settings = load_yaml(run.config, settings)
    if run.init_from is not None:
        settings = starting_from(settings, run.init_from)
    # Again, now that the files have said what the defaults are.
    options = tyro.cli(TrainOptions, args=given, default=TrainOptions(out, settings=settings), prog=prog)
    _train(options, prog)


def _train(options: TrainOptions, command: str) -> None:
    from fastgen.training.ranks import rank  # torch takes a second to import: after the options are known to be right
    from fastgen.training.train import train

    config, out = options.settings, options.out
    say = print if rank() == 0 else lambda message: None
    if not options.resume and config.warmup >= config.steps:
        # Said before the first step, and kept with the run: a longer one goes on with the same.
        config = replace(config, warmup=config.steps // 10)
    outcome = train(config, out, resume=options.resume, init_from=options.init_from)
    if outcome.step < config.steps:
        say(f"stopped and saved at step {outcome.step} of {config.steps}; to go on: {command} --out {out} --resume")
        if outcome.signal is not None:
            sys.exit(128 + outcome.signal)
    else:
        written = sorted(f"samples/{path.name}" for path in (out / "samples").glob(f"{outcome.step:08d}*.png"))
        written += ["loss.png"] if outcome.plotted else []
        say(f"{out}: {', '.join(written or ['checkpoints'])}; {_next(config, out)}")


def _next(config: TrainConfig, out: Path) -> str:
    """What the model is for, as a command."""
    condition = "none" if config.diffusion is None else config.diffusion.condition
    return {
        "none": f"to draw more: fastgen sample {out}",
        "low_resolution": f"to enlarge an image: fastgen upscale {out} IMAGE",
        "hole": f"to fill a hole: fastgen inpaint {out} IMAGE MASK",
    }[condition]
