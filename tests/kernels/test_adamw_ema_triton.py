"""The kernels of adamw_ema_ against its formula, by the laboratory's checks."""

from itertools import chain

import pytest
import torch
import triton

from fastgen_kernels import adamw_ema_triton
from fastgen_kernels.adamw_ema import Profile, Settings, _adamw_ema_, adamw_ema_
from fastgen_kernels.adamw_ema_triton import Facts, Kind, make_plan
from proof.interpreter import last_program
from proof.laboratory.accuracy import assert_accurate
from proof.laboratory.allocations import assert_all_written
from proof.laboratory.compiling import assert_registered
from proof.laboratory.device import DEVICE, INTERPRETED, interpreter_only
from proof.laboratory.far import LIMIT, lazy
from proof.laboratory.guard_pages import assert_in_bounds, guarded
from proof.laboratory.races import assert_order_free, assert_race_free
from proof.traffic import counted
from tests.helpers.adamw_problems import BF16, FP16, FP32, FP64, SHAPES, Problem, exact, formula, problem, stepped
from tests.proof.test_aot import aot

pytestmark = pytest.mark.kernels

ZERO, ONE, SCALE = (torch.tensor(x, device=DEVICE) for x in (0.0, 1.0, 1024.0))


def assert_right(given):
    ours, peer, right = stepped(given), formula(given).results(), exact(given)
    for name, x in ours.items():
        if name == "counts":
            assert x.tolist() == right[name].tolist()
        else:
            assert_accurate(x, peer[name], right[name], name)


@pytest.fixture(autouse=True)
def _small_chunks(request, monkeypatch):
    """In the interpreter, which is slow, chunks and blocks of a few elements."""
    if INTERPRETED and "full_size" not in request.node.name:
        for name, size in (("CHUNK", 64), ("BLOCK", 32), ("WIDTH", 8)):
            monkeypatch.setattr(adamw_ema_triton, name, triton.language.constexpr(size))
    adamw_ema_triton.remember_plan.cache_clear()


@pytest.mark.kill
@pytest.mark.parametrize("copies", [[], [BF16]])
def test_accurate_at_full_size(copies):
    assert adamw_ema_triton.CHUNK.value % adamw_ema_triton.BLOCK.value == 0  # chunks begin at multiples of 16 bytes
    assert_right(problem([(32773,), (16384,), (3, 8, 7, 5), (5, 1024)], copies=copies))


@pytest.mark.kill
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"averages": 0, "clip": 0.0, "frozen": 0},
        {"averages": 2, "clip": torch.inf},
        {"averages": 2, "updates": 0},  # the first update, of which a power function keeps all
        {"size": 1e-4},  # not clipped
        {"size": 1e4, "grad_scale": SCALE, "found_inf": ZERO},
        {"clip": 0.0, "size": 1e3, "grad_scale": SCALE},
        {"unaligned": True, "averages": 2},
        {"grad": BF16, "copies": [BF16, BF16, BF16]},
        {"grad": FP16, "copies": [FP16] * 7, "averages": 2},
        {"copies": [BF16, FP16], "averages": 0},
        {"unaligned": True, "grad": BF16, "copies": [BF16] * 2},
        {"frozen": len(SHAPES), "averages": 2},
    ],
    ids=str,
)
def test_accurate(options):
    assert_right(problem(**options))


@pytest.mark.kill
def test_what_is_added_to_the_norm():
    given = problem(size=1e-7, clip=1e-7)
    given.exp_avgs = [torch.zeros_like(m) for m in given.exp_avgs]
    assert_right(given)


@pytest.mark.kill
def test_kinds_together():
    """Aligned and not, of several dtypes, each launched apart and clipped by the norm of all."""
    given, others = problem(copies=[BF16] * 2, frozen=0), problem(grad=BF16, frozen=0, unaligned=True)
    for i in (3, 7):
        given.params[i], given.grads[i] = others.params[i], others.grads[i]
    given.grads[0] = given.grads[0].bfloat16()
    assert_right(given)


@pytest.mark.kill
@pytest.mark.parametrize("layouts", [("channels_last", "contiguous"), ("permuted", "permuted"), ("contiguous", "sliced")])
def test_layouts(layouts):
    shapes = [(3, 8, 7, 5), (16, 4, 1, 1), (9, 50)]
    given = problem(shapes, layout=layouts[0], frozen=0)
    given.grads = problem(shapes, layout=layouts[1], frozen=0).grads
    assert_right(given)


@pytest.mark.kill
@pytest.mark.parametrize(
    ("tensor", "element", "value", "clip"),
    [(0, 132, torch.nan, 1.0), (3, 0, torch.inf, torch.inf), (2, 1, -torch.inf, 1.0), (6, 15, torch.nan, torch.inf)],
)
@pytest.mark.filterwarnings("ignore:.*encountered")
def test_a_gradient_that_is_not_finite_changes_nothing_but_the_count(tensor, element, value, clip):
    given = problem(copies=[BF16], averages=2, clip=clip)
    given.grads[tensor].view(-1)[element] = value
    assert_skipped(given)


@pytest.mark.kill
@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.filterwarnings("ignore:.*encountered")
def test_a_found_inf_changes_nothing_but_the_count(clip):
    assert_skipped(problem(copies=[BF16], averages=2, clip=clip, grad_scale=SCALE, found_inf=ONE))
    assert_skipped(problem(clip=clip, found_inf=2 * ONE, updates=0))


def assert_skipped(given):
    before, after = given.clone().results(), stepped(given)
    for name in before:
        if name != "counts":
            assert torch.equal(before[name], after[name]), name
    assert (after["counts"] - before["counts"]).tolist() == [0, 1]


@pytest.mark.kill
@pytest.mark.filterwarnings("ignore:.*encountered")
def test_many_steps():
    """Those of one parameter among others that wait; bias corrections to 1e-7 from the first on."""
    given = problem([(40,), (7,)], frozen=0, averages=2, clip=0.0)
    given.settings, given.groups = [Settings(0.0, 0.0, 1e-3, 0.5), Settings(0.9, 0.9999, 0.0, 0.0)], [0, 1]
    for t in (0, 1, 2, 10, 1000, 123_456):
        given.steps = [torch.tensor(float(t), device=DEVICE) for _ in range(2)]
        assert_right(given)


@pytest.mark.kill
def test_many_tensors():
    """More than are prepared at a time."""
    given = problem([(2,)] * (adamw_ema_triton.WIDTH.value + 1), frozen=0, averages=0)
    work = given.clone()
    adamw_ema_(**vars(work))
    right = formula(given)
    torch.testing.assert_close(torch.stack(work.params), torch.stack(right.params))
    assert torch.equal(torch.stack(work.steps), torch.stack(right.steps))


@pytest.mark.kill
@pytest.mark.parametrize("updates", [0, 1, 5, 100_000])
def test_profiles(updates):
    for profiles in ((Profile(0.5, 0.0), Profile(0.9999, 9.0)), (Profile(exponent=1.0), Profile(exponent=17.97))):
        given = problem([(100,)], frozen=0, updates=updates, averages=2)
        given.profiles = list(profiles)
        assert_right(given)


@interpreter_only
@pytest.mark.kill
def test_sound():
    given = problem([(101,), (3, 4), (33,)], copies=[BF16], averages=2, unaligned=True, grad_scale=SCALE, found_inf=ZERO)

    def run(tensors):
        results = stepped(Problem(**tensors))
        return [x.reshape(-1) for x in results.values()]

    assert_in_bounds(run, vars(given))
    assert_all_written(run, vars(given))
    assert_race_free(lambda: run(vars(given)))
    assert_order_free(lambda: run(vars(given)))


@interpreter_only
@pytest.mark.kill
def test_the_plan_is_read_within_its_bounds_at_full_size(monkeypatch):
    def guarded_plan(words, device):
        return guarded(torch.from_numpy(words))

    def run(given):
        monkeypatch.setattr(adamw_ema_triton, "upload", guarded_plan)
        return list(stepped(Problem(**given)).values())

    given = problem([(5,), (3, 4)], averages=2)
    given.lr, given.settings = given.lr[:1], given.settings[:1]
    assert_in_bounds(run, vars(given))


@pytest.mark.kill
def test_the_first_average_by_a_power_function_is_the_parameter():
    """torch.lerp ends where it should."""
    results = stepped(problem(averages=2, updates=0))
    for i in range(len(SHAPES)):
        assert torch.equal(results[f"average 1 of {i}"], results[f"param {i}"])


@interpreter_only
@pytest.mark.kill
@pytest.mark.filterwarnings("ignore:.*encountered")
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_beyond_2_31_elements_at_full_size(clip):
    """Of one parameter, whose last chunk alone is stepped."""
    size = LIMIT + 40_000
    given = problem([(1,)], frozen=0, clip=clip)
    for tensors in (given.params, given.grads, given.exp_avgs, given.exp_avg_sqs, given.averages[0]):
        tensors[0] = lazy(size, FP32)
        tensors[0][-1] = 1.0
    with last_program():
        adamw_ema_(**vars(given))
    assert given.exp_avgs[0][-1] > 0.9 if clip == 0.0 else given.counts[0] >= 3
    if clip == 0.0:
        assert given.params[0][-1] < 1.0
        assert given.averages[0][0][-1] < 1.0


@pytest.mark.kill
def test_plan_at_full_size():
    """Of a bf16 gradient with a copy, of a gradient that is at no multiple of 16 bytes, and of a parameter without one."""
    pointers = (16, 64, 96), (32, 40), (48, 160), (80, 176), (112, 208, 192), (), (128,), (4, 8)
    sizes, settings, profiles = (16385, 7, 3 * 16384), (0.9, 0.999, 1e-8, 0.01), (0.99, 9.0, 0.0)
    facts = Facts(pointers, sizes, (BF16, FP32), (BF16,), (0, 1), settings, profiles, torch.device("cpu"))
    plan = make_plan(facts)
    assert plan.kinds == {Kind(BF16, BF16, True): 2, Kind(FP32, None, False): 1, Kind(None, None, True): 3}
    assert plan.table.view(3, -1).tolist() == [
        [16, 32, 48, 80, 112, 0, 128, 4, 16385, 0],
        [64, 40, 160, 176, 208, 0, 0, 8, 7, 1],
        [96, 0, 0, 0, 192, 0, 0, 0, 3 * 16384, 0],
    ]
    assert plan.chunks.view(-1, 2).tolist() == [[0, 0], [0, 1], [1, 0], [2, 0], [2, 1], [2, 2]]
    assert tuple(plan.settings.tolist()) == settings
    assert tuple(plan.profiles.tolist()) == profiles


@interpreter_only
@pytest.mark.kill
@pytest.mark.parametrize(("clip", "launches"), [(0.0, 2), (1.0, 3)])
def test_launches(clip, launches):
    """The norm, the numbers, the step; and no operation of PyTorch's."""
    given = problem(SHAPES, frozen=0, clip=clip)
    adamw_ema_(**vars(given))  # the plan
    _, traffic = counted(lambda: adamw_ema_(**vars(given)))
    assert traffic.launches == launches


@interpreter_only
def test_traffic_of_the_norm_at_full_size():
    """Gradients are read once more."""
    given = problem([(3 * 16384,)], frozen=0, clip=0.0)
    _, without = counted(lambda: adamw_ema_(**vars(given)))
    given.clip = 1.0
    _, clipping = counted(lambda: adamw_ema_(**vars(given)))
    assert 36 <= without.bytes / given.params[0].numel() <= 36 * 1.05
    assert 4 <= (clipping.bytes - without.bytes) / given.params[0].numel() <= 4 * 1.05


@pytest.mark.slow
def test_16_bytes_at_a_time(tmp_path):
    reports, process = aot(tmp_path, "--op", "adamw_ema", "--main", "--cc", 90)
    assert process.returncode == 0, process.stderr
    stepping = [r for r in reports if r["kernel"] == "update_kernel"]
    assert [(r["loads"]["?"]["16"], r["stores"]["?"]["16"]) for r in stepping] == [(10, 8), (9, 9)]  # of 8 elements each
    assert all(r["loads"]["?"]["16"] for r in reports if r["kernel"] == "norm_kernel")


def test_registered():
    given = problem([(40,), (3, 5), (2,)], copies=[BF16], averages=2)
    state = given.params, given.grads, given.exp_avgs, given.exp_avg_sqs, given.steps
    numbers = list(chain(*given.settings)), given.groups, list(chain(*given.profiles)), 1.0
    arguments = *state, *given.averages, given.copies, given.counts, given.lr, *numbers, SCALE, ZERO
    assert_registered(_adamw_ema_.registered, arguments)


def test_other_dtypes_take_the_reference():
    given = problem([(40,), (3, 5)]).double()
    for name, x in stepped(given).items():
        torch.testing.assert_close(x, exact(given)[name], rtol=1e-7, atol=1e-9)
    assert given.params[0].dtype == FP64
