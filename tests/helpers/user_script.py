"""A user's script, which tests/test_types.py has type checkers read: what the public names are to them. It is never run."""

from collections.abc import Iterator
from typing import assert_type

import numpy as np
import torch
from torch import Tensor

import fastgen
from fastgen import functional, optim, samplers, schedules

data = fastgen.open_dataset("mnist", size=28, kind="images", resident="auto")
batches = data.batches(16, seed=1)
assert_type(batches, Iterator[tuple[Tensor, Tensor | None]])
assert_type(len(data), int)
assert_type(data.classes, list[str] | None)

net = fastgen.UNet(in_channels=1, channels=32, multipliers=(1, 2), groups=8, num_classes=10)
diffusion = fastgen.Diffusion("rectified_flow", prediction="flow", weighting="uniform")
objective = fastgen.DiffusionObjective(net, diffusion, times="logit_normal", loss="huber", label_dropout=0.1)
optimizer = optim.AdamWEMA(net.parameters(), 1e-3, clip=1.0, ema=0.999)
for step in range(3):
    image, label = next(batches)
    key = functional.noise_key(seed=0, step=step, samples=16)
    loss = fastgen.train_step(objective, optimizer, image, label, key, accumulation=2, precision="fp32")
    assert_type(loss, Tensor)

denoise = diffusion.denoiser(net, label=torch.tensor([7, 7]), guidance=1.5)
x0 = samplers.euler(denoise, torch.randn(2, 1, 28, 28), samplers.uniform_times(10))
assert_type(x0, Tensor)
assert_type(denoise.schedule, schedules.Schedule)
assert_type(functional.group_norm(x0, 1, activation="silu"), Tensor)

vae = fastgen.VAE(input_dim=784, latent_dim=16, likelihood="gaussian", std=0.5)
assert_type(vae.encode(torch.rand(8, 784)), tuple[Tensor, Tensor])
assert_type(vae.elbo(torch.rand(8, 784)), Tensor)
assert_type(vae.sample(4), Tensor)
assert_type(vae.reconstruct(torch.rand(8, 784)), Tensor)
codes = torch.cat([vae.encode(x)[0] for x, _ in data.batches(64, epochs=1, shuffle=False)])
sample = data[0]
loaded = torch.utils.data.DataLoader(data, batch_size=4)
autoencoder = fastgen.ConvVAE(1, 28, 16)
fastgen.VAEObjective(vae)

run = fastgen.load("runs/mnist", device="cpu")
settings = fastgen.Sampling(steps=10, sampler="dpmpp_2m", guidance=1.25)
images, labels = run.sample(8, label=[1, 2], settings=settings, times="karras")
assert_type(images, Tensor)
assert_type(labels, Tensor | None)
fastgen.save_images("eight.png", images, labels)
assert_type(fastgen.applications.edit(run, images, 0.5, sampler="euler"), Tensor)
assert_type(fastgen.applications.inpaint(run, images, torch.zeros(8, 1, 28, 28, dtype=torch.bool)), Tensor)

report = fastgen.optimize(net)
print(report.changed, report.left)
fastgen.restore(net)
with fastgen.disabled():
    fastgen.open_dataset((np.zeros((8, 8, 8), np.uint8), np.zeros(8, np.int64)))
