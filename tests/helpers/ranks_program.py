"""What two processes do in test_ranks.py: `torchrun --nproc-per-node 2 -m tests.helpers.ranks_program FOLDER`."""

import dataclasses
import shutil
import sys
from pathlib import Path

from fastgen.config.schema import DataConfig, DiffusionConfig, TrainConfig, UNetConfig
from fastgen.training.preview import Preview
from fastgen.training.ranks import barrier, joined, rank
from fastgen.training.train import train

PLAIN = TrainConfig(
    data=DataConfig("digits", flip=True, shift=1),
    model=UNetConfig(channels=8, multipliers=(1, 2), blocks=1, attention_levels=(), groups=4),
    diffusion=DiffusionConfig(label_dropout=0.1, times="stratified"),
    steps=6,
    batch_size=8,
    warmup=3,
    lr=1e-3,
    ema=0.9,
    precision="fp32",
    threads=1,
    log_every=1,
    sample_every=100,
    checkpoint_every=3,
)
SHARDED = dataclasses.replace(PLAIN, shard=True)
SHARDED_BF16 = dataclasses.replace(SHARDED, precision="bf16_weights")
DROPOUT = dataclasses.replace(PLAIN, model=dataclasses.replace(PLAIN.model, dropout=0.1), steps=24)
DROPOUT_SHARDED = dataclasses.replace(DROPOUT, shard=True, steps=PLAIN.steps)


def forget_end(run: Path, copy: Path, steps: int) -> Path:
    """A copy of a finished run without the checkpoint of its last step."""
    if rank() == 0:
        shutil.copytree(run, copy)
        shutil.rmtree(copy / "checkpoints" / f"{steps:08d}")
    barrier()
    return copy


def main(folder: Path) -> None:
    train(SHARDED, folder / "sharded")
    Preview.__call__ = lambda self, step: {}
    train(PLAIN, folder / "copied")
    train(dataclasses.replace(PLAIN, accumulation=2), folder / "accumulated")
    train(dataclasses.replace(SHARDED, precision="fp16", steps=3), folder / "sharded-fp16")
    train(PLAIN, folder / "one-then-copied", resume=True)
    train(SHARDED, folder / "one-then-sharded", resume=True)
    train(dataclasses.replace(PLAIN, precision="bf16_weights"), folder / "copied-bf16")
    for config, name in ((DROPOUT, "dropout"), (DROPOUT_SHARDED, "dropout-sharded"), (SHARDED_BF16, "sharded-bf16")):
        train(config, folder / name)
        train(config, forget_end(folder / name, folder / f"{name}-resumed", config.steps), resume=True)


if __name__ == "__main__":
    written = []
    if rank() > 0:
        sys.addaudithook(lambda event, arguments: written.append((event, arguments)) if _changes(event, arguments) else None)

    def _changes(event, arguments):
        made = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")
        return (made or (event == "open" and arguments[1] not in ("r", "rb", None))) and sys.argv[1] in str(arguments[0])

    with joined():
        main(Path(sys.argv[1]))
    print(f"rank {rank()} wrote {written}")
