"""optimize where models are trained on several processes, under accelerate, sharded, compiled or exported."""

import os
import socket
from importlib.util import find_spec

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import fastgen
from tests.helpers.diffusers_models import gradients, make, unet


def steps(model, arguments, optimizer, backward):
    losses = []
    for _ in range(3):
        loss = model(*arguments)[0].square().mean()
        backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_accelerate():
    from accelerate import Accelerator

    curves = []
    for optimized in (False, True):
        model, arguments = make(unet)
        if optimized:
            fastgen.optimize(model)
        accelerator = Accelerator(cpu=True)
        model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), 1e-3))
        curves.append(steps(model, arguments, optimizer, accelerator.backward))
        assert type(accelerator.unwrap_model(model)).__name__ == "UNet2DModel"
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)


def in_processes(worker, *arguments):
    """Runs worker(rank, *arguments) in two processes that are a gloo group."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{found.getsockname()[1]}"
    mp.spawn(_start, (worker, address, *arguments), nprocs=2)


def _start(rank, worker, address, *arguments):
    torch.set_num_threads(1)
    if os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton"):
        # As in conftest.py, which these processes do not import.
        from proof.interpreter import quicken, round_as_on_a_gpu, round_products_once

        quicken()
        round_products_once()
        round_as_on_a_gpu()
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    try:
        worker(rank, *arguments)
    finally:
        dist.destroy_process_group()


def ddp(rank, folder):
    curves = []
    for optimized in (False, True):
        model, arguments = make(unet)
        if optimized:
            fastgen.optimize(model)
        wrapped = nn.parallel.DistributedDataParallel(model)
        arguments = (arguments[0] + rank, *arguments[1:])
        curves.append(steps(wrapped, arguments, torch.optim.AdamW(model.parameters(), 1e-3), torch.Tensor.backward))
        if rank == 0:
            torch.save([*model.state_dict().values()], folder / f"{optimized}.pt")
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)


@pytest.mark.slow
def test_ddp(tmp_path):
    in_processes(ddp, tmp_path)
    before, after = (torch.load(tmp_path / f"{optimized}.pt") for optimized in (False, True))
    for x, y in zip(before, after, strict=True):
        torch.testing.assert_close(y, x, rtol=1e-3, atol=1e-4)


def fsdp(rank):
    from torch.distributed.fsdp import fully_shard

    model, arguments = make(unet)
    expected = model(*arguments)[0]
    fastgen.optimize(model)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    for block in (*model.down_blocks, *model.up_blocks, model):
        fully_shard(block, mesh=mesh)
    got = model(*arguments)[0]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    got.square().mean().backward()
    for refused in (fastgen.optimize, fastgen.restore):
        with pytest.raises(ValueError, match="model: expected one before FSDP, got FSDP on"):
            refused(model)


@pytest.mark.slow
def test_fsdp2():
    in_processes(fsdp)


@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_compiles_without_breaks_and_no_oftener_than_before(dynamic):
    counts = []
    for optimized in (False, True):
        torch._dynamo.reset()
        model, (x, t) = make(unet)
        inputs = [x[:, :, :size, :size].contiguous() for size in (8, 12)]
        expected = [model(x, t)[0] for x in inputs]
        if optimized:
            fastgen.optimize(model)
        counter = CompileCounterWithBackend("eager")
        compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=dynamic)
        with torch.no_grad():
            for x, right in zip(inputs * 2, expected * 2, strict=True):
                torch.testing.assert_close(compiled(x, t)[0], right, rtol=1e-4, atol=1e-5)
        counts.append(counter.frame_count)
    assert counts[1] <= counts[0] <= len(inputs)


@pytest.mark.slow
def test_regional_compilation():
    """Computes the same, in no more graphs than the blocks of diffusers make."""
    counts = []
    for optimized in (False, True):
        torch._dynamo.reset()
        model, arguments = make(unet)
        expected = gradients(model, arguments)
        if optimized:
            fastgen.optimize(model)
        counter = CompileCounterWithBackend("aot_eager")
        for module in model.modules():
            if type(module).__name__ == "ResnetBlock2D":
                module.compile(fullgraph=True, backend=counter)
        got = gradients(model, arguments)
        for name, x in expected.items():
            torch.testing.assert_close(got[name], x, rtol=1e-3, atol=1e-3)
        counts.append(counter.frame_count)
    assert 0 < counts[1] <= counts[0]


def test_exports():
    model, arguments = make(unet)
    fastgen.optimize(model)
    with torch.no_grad():
        exported = torch.export.export(model, arguments, strict=False)
        torch.testing.assert_close(exported.module()(*arguments)[0], model(*arguments)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "max-autotune"])  # on a CPU "reduce-overhead" is the default
def test_inductor(mode):
    torch._dynamo.reset()
    model, arguments = make(unet)
    fastgen.optimize(model)
    expected = gradients(model, arguments)["output"]
    compiled = torch.compile(model, fullgraph=True, mode=mode)
    torch.testing.assert_close(compiled(*arguments)[0], expected, rtol=1e-3, atol=1e-4)
