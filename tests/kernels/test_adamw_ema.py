import math

import pytest
import torch

from fastgen_kernels.adamw_ema import Profile, adamw_ema_, decay_at
from tests.helpers.adamw_problems import BF16, FP16, FP64, exact, problem, stepped
from tests.helpers.paths import by_reference

pytestmark = pytest.mark.usefixtures("path")

SMALL = [(40,), (3, 8, 7, 5), (1,), (), (0, 3)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"averages": 0, "clip": 0.0, "frozen": 0},
        {"averages": 2, "clip": math.inf, "updates": 0},
        {"size": 1e4},
        {"grad": BF16, "copies": [BF16] * 3},
        {"grad": FP16, "copies": [FP16, BF16], "averages": 2},
        {"layout": "channels_last", "averages": 2},
        {"frozen": 5},
    ],
    ids=str,
)
def test_formula(options):
    given = problem(SMALL, **options)
    right = exact(given)
    for name, x in stepped(given).items():
        torch.testing.assert_close(x, right[name].to(x.dtype), msg=lambda message, at=name: f"{at}: {message}")


def test_fp64():
    given = problem(SMALL, averages=2).double()
    right = exact(given)
    for name, x in stepped(given).items():
        torch.testing.assert_close(x, right[name])
        assert name.startswith("counts") or x.dtype == FP64


def test_scaled_gradients():
    plain, scaled = problem(SMALL), problem(SMALL)
    scaled.grads = [1024 * g for g in scaled.grads]
    scaled.grad_scale, scaled.found_inf = torch.tensor(1024.0), torch.tensor(0.0)
    for x, y in zip(stepped(plain).values(), stepped(scaled).values(), strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.filterwarnings("ignore:.*encountered")
@pytest.mark.parametrize("what", ["nan", "inf", "found_inf"])
def test_a_skipped_step_changes_nothing_but_the_count(what):
    given = problem(SMALL, averages=2)
    given.copies = [given.params[0].bfloat16()]
    if what == "found_inf":
        given.found_inf, given.clip = torch.tensor(2.0), 0.0
    else:
        given.grads[1][0, 0, 0, 0] = float(what)
    before, after = given.clone().results(), stepped(given)
    assert (after.pop("counts") - before.pop("counts")).tolist() == [0, 1]
    for name, x in before.items():
        assert torch.equal(x, after[name]), name


def test_nothing_to_step():
    given = problem([(3,)], frozen=1, averages=0)
    assert torch.equal(stepped(given)["param 0"], given.params[0])


@pytest.mark.parametrize(
    ("profile", "decays"),
    [
        (Profile(0.9, 9.0), [0.1, 2 / 11, 3 / 12]),
        (Profile(0.9, 0.0), [0.9, 0.9, 0.9]),
        (Profile(0.2, 9.0), [0.1, 2 / 11, 0.2]),
        (Profile(exponent=2.0), [0.0, 1 / 4, 4 / 9]),
    ],
)
def test_decay(profile, decays):
    n = torch.arange(1, 4)
    torch.testing.assert_close(decay_at(n, profile), torch.tensor(decays, dtype=torch.float64))


@by_reference
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda x: x.averages.extend(x.averages * 2),
            "averages: expected up to two lists, with a profile each, got 3 and 1 profiles",
        ),
        (lambda x: x.profiles.clear(), "got 1 and 0 profiles"),
        (lambda x: x.params.pop(0), "grads, copies: expected those of the first parameters, got 2 grads and 0 copies"),
        (lambda x: x.copies.extend(x.params * 2), "got 2 grads and 4 copies of 2 params"),
        (lambda x: x.steps.pop(), "exp_avgs, exp_avg_sqs, steps, groups: expected as many as grads, 2, got 2, 2, 1 and 2"),
        (lambda x: x.averages[0].pop(), r"averages\[0\]: expected as many as params, 2, got 1"),
        (lambda x: x.exp_avgs.reverse(), r"like it, torch.float32 of shape \(40,\) .* got torch.float32 of shape \(3, 5\)"),
        (lambda x: x.grads.reverse(), "to be like it"),
        (lambda x: x.params.__setitem__(1, x.params[1].double()), "to be like it, .* got torch.float64"),
        (lambda x: x.exp_avg_sqs.__setitem__(1, x.exp_avg_sqs[1].t().contiguous().t()), r"strides \(5, 1\).* strides \(1, 3\)"),
        (lambda x: x.grads.__setitem__(0, torch.ones(40, dtype=torch.int32)), "got torch.int32"),
        (lambda x: x.params.__setitem__(1, x.params[1].to("meta")), "params: expected all on one device, got (cpu|cuda:0), meta"),
        (lambda x: setattr(x, "counts", x.counts.float()), r"counts: expected torch.int64 of shape \(2,\), got torch.float32"),
        (lambda x: setattr(x, "lr", x.lr[:1]), r"lr: expected torch.float64 of shape \(2,\), got torch.float64 of shape \(1,\)"),
    ],
)
def test_errors(change, message):
    given = problem([(40,), (3, 5)], frozen=0)
    change(given)
    with pytest.raises(ValueError, match=message):
        adamw_ema_(**vars(given))
