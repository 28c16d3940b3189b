import copy
import io
import pickle

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastgen.optim import AdamWEMA, Profile, constant, power

DIM, STEPS = 6, 200


def make_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 3, 3, padding=1))


def backward(net, seed, size=1.0):
    """Gradients of a step of training."""
    x = torch.randn(2, 3, DIM, DIM, generator=torch.Generator().manual_seed(seed), device="cpu").to(next(net.parameters()))
    loss = size * F.mse_loss(net(x), x.flip(1)).float()
    net.zero_grad()
    loss.backward()
    return loss.item()


def assert_same(ours, theirs, **tolerance):
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, **tolerance)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("clip", [0.0, 0.3])
def test_training_is_that_of_adamw_with_clipping_and_lerp(clip, fused):
    plain, ours = make_net(), make_net()
    adamw = torch.optim.AdamW(plain.parameters(), 1e-2, weight_decay=0.1, fused=fused)
    averages = [[p.detach().clone() for p in plain.parameters()] for _ in range(2)]
    optimizer = AdamWEMA(ours.parameters(), 1e-2, weight_decay=0.1, clip=clip, ema=(0.95, Profile(0.9)))
    losses = []
    for step in range(STEPS):
        for group in (*adamw.param_groups, *optimizer.param_groups):
            group["lr"] = 1e-2 * (1 - step / STEPS)
        losses.append((backward(plain, step), backward(ours, step)))
        if clip:
            nn.utils.clip_grad_norm_(plain.parameters(), clip)
        adamw.step()
        torch._foreach_lerp_(averages[0], list(plain.parameters()), 1 - min(0.95, (1 + step) / (10 + step)))
        torch._foreach_lerp_(averages[1], list(plain.parameters()), 0.1)
        optimizer.step()
    torch.testing.assert_close(*torch.tensor(losses).T, rtol=1e-4, atol=1e-6)
    assert losses[-1][1] < 0.5 * losses[0][1]
    assert_same(ours.parameters(), plain.parameters(), rtol=1e-4, atol=1e-5)
    for i, average in enumerate(averages):
        assert_same(optimizer.ema_state_dict(ours, i).values(), average, rtol=1e-4, atol=1e-5)
    assert optimizer.updates == STEPS
    assert optimizer.skipped == 0


@pytest.mark.slow
@pytest.mark.kernels
def test_training_by_the_kernels_is_that_of_adamw():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    plain, ours = make_net().to(device), make_net().to(device)
    adamw, optimizer = torch.optim.AdamW(plain.parameters(), 1e-2), AdamWEMA(ours.parameters(), 1e-2, clip=0.3, ema=0.95)
    averages = [p.detach().clone() for p in plain.parameters()]
    for step in range(STEPS):
        backward(plain, step)
        backward(ours, step)
        nn.utils.clip_grad_norm_(plain.parameters(), 0.3)
        adamw.step()
        torch._foreach_lerp_(averages, list(plain.parameters()), 1 - min(0.95, (1 + step) / (10 + step)))
        optimizer.step()
    assert_same(ours.parameters(), plain.parameters(), rtol=1e-4, atol=1e-5)
    assert_same(optimizer.ema_state_dict(ours).values(), averages, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("path")
def test_state_dicts_are_exchanged_with_adamw():
    """After every exchange both go on alike."""
    plain, ours = make_net(), make_net()
    adamw, optimizer = torch.optim.AdamW(plain.parameters(), 1e-2), AdamWEMA(ours.parameters(), 1e-2, ema=0.9)
    for step in range(6):
        backward(plain, step)
        backward(ours, step)
        adamw.step()
        optimizer.step()
        if step == 1:
            state = copy.deepcopy(adamw.state_dict())
            optimizer.load_state_dict(saved(state))
            assert optimizer.updates == 0
            assert not optimizer.state_dict()["averages"][0]
        if step == 3:
            state = saved(optimizer.state_dict())
            adamw.load_state_dict(state)
            assert adamw.param_groups[0].keys() == optimizer.param_groups[0].keys()
    assert_same(ours.parameters(), plain.parameters())
    torch.testing.assert_close([optimizer.state[p] for p in ours.parameters()], [adamw.state[p] for p in plain.parameters()])


def saved(state):
    """As a checkpoint gives it back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restored_run_is_the_run(dtype):
    one = make_net().to(dtype)
    optimizer = AdamWEMA(one.parameters(), 1e-2, clip=1.0, ema=(0.9, power(0.1)))
    for step in range(3):
        backward(one, step)
        optimizer.step()
    state, weights = saved(optimizer.state_dict()), copy.deepcopy(one.state_dict())

    other = make_net(seed=1).to(dtype)
    other.load_state_dict(weights)
    again = AdamWEMA(other.parameters(), 1.0, clip=1.0, ema=(0.9, power(0.1)))
    again.load_state_dict(state)
    restored = pickle.loads(pickle.dumps((one, optimizer)))
    for net, adamw in ((one, optimizer), (other, again), restored):
        for step in range(3, 6):
            backward(net, step)
            adamw.step()
    for net, adamw in ((other, again), restored):
        assert adamw.updates == 6
        assert_same(net.parameters(), one.parameters(), rtol=0, atol=0)
        for i in range(2):
            assert_same(adamw.ema_state_dict(net, i).values(), optimizer.ema_state_dict(one, i).values(), rtol=0, atol=0)


def test_bf16_parameters_have_fp32_masters():
    """Steps that bf16 would round away add up."""
    parameter = nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    optimizer = AdamWEMA([parameter], 1e-4, weight_decay=0.0, ema=0.5)
    for _ in range(100):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    torch.testing.assert_close(parameter, torch.full_like(parameter, 0.99))
    average = optimizer.ema_state_dict(nn.ParameterList([parameter]))["0"]
    torch.testing.assert_close(average, torch.full((64,), 0.9901), rtol=1e-5, atol=0)
    assert {x.dtype for x in optimizer.state[parameter].values()} == {torch.float32}


def test_parameters_without_gradients_wait_and_their_averages_follow():
    used, unused, frozen = (nn.Parameter(torch.ones(3)) for _ in range(3))
    frozen.requires_grad_(False)
    optimizer = AdamWEMA(
        [{"params": [frozen, used]}, {"params": [unused], "lr": 0.5}], 0.1, weight_decay=0.0, ema=constant(0.5, 0)
    )
    used.grad = torch.ones(3)
    optimizer.step()
    assert unused.equal(torch.ones(3))
    assert not optimizer.state[unused]
    with torch.no_grad():
        frozen += 1
    unused.grad = torch.ones(3)
    optimizer.step()
    torch.testing.assert_close(unused.detach(), torch.full((3,), 0.5))  # its own first step, with its group's lr
    averages = optimizer.ema_state_dict(nn.ParameterList([frozen, used, unused]))
    assert averages["0"].equal(torch.full((3,), 1.5))
    torch.testing.assert_close(averages["2"], torch.full((3,), 0.75))
    assert [float(optimizer.state[p]["step"]) for p in (used, unused)] == [2.0, 1.0]
    torch.optim.AdamW([{"params": [frozen, used]}, {"params": [unused]}]).load_state_dict(optimizer.state_dict())


@pytest.mark.filterwarnings("ignore:.*encountered")
@pytest.mark.usefixtures("path")
def test_a_step_that_is_not_finite_is_skipped_and_counted():
    net = make_net()
    optimizer = AdamWEMA(net.parameters(), 1e-2, clip=torch.inf, ema=0.9)
    backward(net, 0)
    optimizer.step()
    before = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
    backward(net, 1)
    next(net.parameters()).grad[0, 0, 0, 0] = torch.nan
    optimizer.step()
    after = net.state_dict(), optimizer.state_dict()
    assert [int(x) for x in (optimizer.updates, optimizer.skipped)] == [1, 1]
    before[1].pop("counts"), after[1].pop("counts")
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_memory_formats():
    """Of parameters, and of gradients that came out otherwise; what has gaps is refused."""
    plain, ours = make_net(), make_net().to(memory_format=torch.channels_last)
    adamw, optimizer = torch.optim.AdamW(plain.parameters(), 1e-2), AdamWEMA(ours.parameters(), 1e-2, clip=1e9, ema=0.9)
    for step in range(4):
        backward(plain, step)
        backward(ours, step)
        for p in ours.parameters() if step % 2 else ():
            p.grad = p.grad.contiguous()
        adamw.step()
        optimizer.step()
        if step == 1:
            optimizer.load_state_dict(adamw.state_dict())  # contiguous
    assert_same(ours.parameters(), plain.parameters())
    gaps = nn.Parameter(torch.ones(4, 4)[:, :2])
    gaps.grad = torch.ones(4, 2)
    with pytest.raises(ValueError, match=r"params: expected strides without gaps or overlaps in memory, got \(4, 1\)"):
        AdamWEMA([gaps]).step()


@pytest.mark.parametrize("unscaled", [False, True])
def test_gradient_scaler(unscaled):
    """The gradients are divided by its scale, clipped after that, and a step in which it finds an inf is skipped."""
    plain, ours = make_net(), make_net()
    adamw, optimizer = torch.optim.AdamW(plain.parameters(), 1e-2), AdamWEMA(ours.parameters(), 1e-2, clip=0.1, ema=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(4):
        backward(plain, step)
        backward(ours, step, size=scaler.get_scale())
        if step == 2:
            next(ours.parameters()).grad[0] = torch.inf
        else:
            nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
            adamw.step()
        if unscaled:
            scaler.scale(torch.zeros(()))  # makes its scale a tensor
            scaler.unscale_(optimizer)
        else:
            scaler.scale(torch.zeros(()))
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0**9
    assert [int(x) for x in (optimizer.updates, optimizer.skipped)] == [3, 1]
    assert_same(ours.parameters(), plain.parameters())


def test_closure_and_schedulers():
    net = make_net()
    optimizer = AdamWEMA(net.parameters(), torch.tensor(1e-2))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step else 1.0)
    first = next(net.parameters()).detach().clone()
    assert optimizer.step(lambda: backward(net, 0)) == pytest.approx(backward(make_net(), 0))
    after = next(net.parameters()).detach().clone()
    assert not after.equal(first)
    scheduler.step()
    backward(net, 1)
    optimizer.step()
    assert next(net.parameters()).equal(after)


@pytest.fixture
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*encountered")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shards(dtype, mesh):
    """DTensors give the numbers of whole tensors: clipped, scaled, skipped, averaged, saved and restored."""

    def sharded(x):
        return distribute_tensor(x.detach().clone(), mesh, [Shard(0)])

    net = make_net().to(dtype)
    shards = nn.ParameterList([sharded(p) for p in net.parameters()])
    settings = {"clip": 0.1, "ema": (0.9, power(0.1))}
    plain, optimizer = AdamWEMA(net.parameters(), 1e-2, **settings), AdamWEMA(shards, 1e-2, **settings)
    for step in range(4):
        backward(net, step, size=torch.nan if step == 1 else 8.0)
        for p, shard in zip(net.parameters(), shards, strict=True):
            shard.grad = sharded(p.grad)
        for adamw in (plain, optimizer):
            adamw.grad_scale, adamw.found_inf = torch.tensor(8.0), torch.tensor(float(step == 2))
            adamw.step()
        if step == 0:
            state = optimizer.state_dict()
            optimizer = AdamWEMA(shards, 1e-2, **settings)
            optimizer.load_state_dict(state)
    assert [int(optimizer.updates), int(optimizer.skipped)] == [2, 2]
    weights = [p.detach().clone() for p in net.parameters()]
    assert_same([p.full_tensor() for p in shards], weights)
    for i in range(2):
        averages = list(plain.ema_state_dict(net, i).values())
        assert_same([x.full_tensor() for x in optimizer.ema_state_dict(shards, i).values()], averages)
        with optimizer.averaged(i):
            assert_same([p.full_tensor() for p in shards], [x.to(dtype) for x in averages])
        assert_same([p.full_tensor() for p in shards], weights)


class Waits(TorchDispatchMode):
    """Counts what would wait for a device."""

    found = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found += func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "equal", "is_nonzero")
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device():
    net = make_net()
    optimizer = AdamWEMA(net.parameters(), 1e-2, clip=1.0, ema=(0.9, power(0.1)))
    optimizer.found_inf, optimizer.grad_scale = torch.zeros(()), torch.ones(())
    backward(net, 0)
    with Waits() as waits:
        torch.ones(()).item()
        assert waits.found == 1
        for group in optimizer.param_groups:
            group["lr"] = 1e-3
        optimizer.step()
        optimizer.step()
    assert waits.found == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda net, optimizer: net.to(memory_format=torch.channels_last),
            r"strides \(27, 1, 9, 3\) on cpu, got .* \(27, 9, 3, 1\)",
        ),
        (lambda net, optimizer: net.double(), "torch.float64 .* got torch.float32"),
        (lambda net, optimizer: optimizer.state[net[0].bias].update(exp_avg=torch.zeros(5)), r"got .* shape \(5,\)"),
        (lambda net, optimizer: optimizer.state[net[0].bias].update(exp_avg_sq=torch.zeros(4, device="meta")), "on meta"),
    ],
)
def test_what_changes_between_steps_is_found(change, message):
    net = make_net()
    optimizer = AdamWEMA(net.parameters(), ema=0.9)
    for seed in range(2):
        backward(net, seed)
        optimizer.step()
    change(net, optimizer)
    net.zero_grad()
    backward(net, 2)
    with pytest.raises(ValueError, match=message):
        optimizer.step()


def test_averages_in_a_model():
    net = make_net()
    net.register_buffer("buffer", torch.arange(3))
    optimizer = AdamWEMA(net.parameters(), 0.1, ema=(constant(0.5, 0), 0.9))
    assert_same(optimizer.ema_state_dict(net).values(), net.state_dict().values())  # before the first step
    for step in range(3):
        backward(net, step)
        optimizer.step()
    weights, averages = copy.deepcopy(net.state_dict()), [optimizer.ema_state_dict(net, i) for i in range(2)]
    assert averages[0].keys() == weights.keys()
    assert not averages[0]["0.weight"].equal(averages[1]["0.weight"])
    for i in range(2):
        with optimizer.averaged(i):
            assert_same(net.state_dict().values(), averages[i].values(), rtol=0, atol=0)
        assert_same(net.state_dict().values(), weights.values(), rtol=0, atol=0)

    optimizer.load_ema_state_dict(net, averages[1], 0)
    assert_same(optimizer.ema_state_dict(net).values(), averages[1].values(), rtol=0, atol=0)
    averages[1]["0.weight"].zero_()  # a copy
    assert optimizer.ema_state_dict(net)["0.weight"].any()
    with pytest.raises(KeyError, match=r"3\.bias"):
        optimizer.load_ema_state_dict(net, {name: x for name, x in averages[0].items() if name != "3.bias"})


P = [nn.Parameter(torch.ones(2))]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: AdamWEMA(P, clip=-1.0), "clip: expected a number from 0 on, got -1.0"),
        (lambda: AdamWEMA(P, ema=(0.9, 0.99, 0.999)), r"ema: expected at most two decays in \[0, 1\) or profiles"),
        (lambda: AdamWEMA(P, ema=1.0), r"ema: expected at most two decays in \[0, 1\) or profiles, got 1.0"),
        (lambda: constant(0.9, -1), "warmup: expected a number from 0 on, got -1"),
        (lambda: power(0.3), "sigma_rel: expected a number between 0 and 0.2887, got 0.3"),
        (
            lambda: AdamWEMA(P).load_state_dict(torch.optim.AdamW(P, amsgrad=True).state_dict()),
            "amsgrad: expected False in the state_dict, got True",
        ),
        (
            lambda: AdamWEMA(P, ema=(0.9, 0.99)).load_state_dict(AdamWEMA(P, ema=0.9).state_dict()),
            "averages: expected 2 of them in the state_dict, got 1",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
