"""What two processes do in test_ranks.py: `torchrun --nproc-per-node 2 ranks_program.py FOLDER`."""

import dataclasses
import shutil
import sys
from pathlib import Path

from fastgen.config import DataConfig, DiffusionConfig, TrainConfig, UNetConfig
from fastgen.ranks import barrier, joined, rank
from fastgen.train import train

PLAIN = TrainConfig(
    data=DataConfig("digits", flip=True, shift=1),
    model=UNetConfig(channels=8, multipliers=(1, 2), blocks=1, attention_levels=(), groups=4),
    diffusion=DiffusionConfig(label_dropout=0.1, times="stratified"),
    steps=12,
    batch_size=8,
    warmup=3,
    lr=1e-3,
    ema=0.9,
    precision="fp32",
    threads=1,
    log_every=1,
    sample_every=100,
    checkpoint_every=6,
)
SHARDED = dataclasses.replace(PLAIN, shard=True)
DROPPING = dataclasses.replace(PLAIN, model=dataclasses.replace(PLAIN.model, dropout=0.1))
STOPPED_AT = 6


def forget_end(run: Path, copy: Path) -> Path:
    """A copy of a finished run, as it was at STOPPED_AT."""
    if rank() == 0:
        shutil.copytree(run, copy)
        shutil.rmtree(copy / "checkpoints" / f"{PLAIN.steps:08d}")
    barrier()
    return copy


def main(folder: Path) -> None:
    train(PLAIN, folder / "copied")
    train(dataclasses.replace(PLAIN, accumulation=2), folder / "accumulated")
    train(SHARDED, folder / "sharded")
    train(DROPPING, folder / "dropping")
    train(dataclasses.replace(DROPPING, shard=True), folder / "dropping-sharded")
    train(dataclasses.replace(PLAIN, precision="fp16"), folder / "fp16")
    train(dataclasses.replace(SHARDED, precision="fp16"), folder / "fp16-sharded")
    barrier()

    # Bitwise what was never stopped, on as many ranks.
    train(DROPPING, forget_end(folder / "dropping", folder / "dropping-resumed"), resume=True)
    train(
        dataclasses.replace(DROPPING, shard=True),
        forget_end(folder / "dropping-sharded", folder / "dropping-sharded-resumed"),
        resume=True,
    )
    # From one process to two, and from copies to shards.
    train(PLAIN, folder / "one-then-copied", resume=True)
    train(SHARDED, folder / "one-then-sharded", resume=True)
    print(f"rank {rank()} is done")


if __name__ == "__main__":
    with joined():
        main(Path(sys.argv[1]))
