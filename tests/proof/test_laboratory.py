"""The laboratory passes a right kernel and catches each broken one by the check that is meant for it."""

import ctypes
import resource
from functools import partial
from itertools import cycle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd.gradcheck import GradcheckError
from triton.runtime.interpreter import GridExecutor, interpreter_builder

from proof.interpreter import last_program, recorded, shuffled
from proof.laboratory import accuracy, compiling
from proof.laboratory.accuracy import assert_accurate, assert_as_accurate, results
from proof.laboratory.allocations import assert_all_written, poisoned
from proof.laboratory.broken_triton import blockwise_sum, double, gated, gated_backward, reference
from proof.laboratory.child import died
from proof.laboratory.device import DEVICE, interpreter_only
from proof.laboratory.far import assert_reaches_far, far, lazy
from proof.laboratory.guard_pages import assert_in_bounds, guarded
from proof.laboratory.races import assert_order_free, assert_race_free
from proof.laboratory.samples import op_errors, op_info, op_samples
from proof.laboratory.soundness import assert_sound
from proof.laboratory.strategies import examples, given, gradient_layouts, shapes, tensors
from proof.laboratory.tensors import FLOATS, GRADIENTS, LAYOUTS, random

pytestmark = pytest.mark.kernels


def faulty(fault):
    return lambda x, w: gated(x, w, fault)


right = faulty("")


def inputs(rows=5, columns=13, dtype=torch.float32, layout="contiguous"):
    """x and w, whose first and last elements are beyond the clamp."""
    x, w = random((rows, columns), dtype, layout), torch.linspace(-2.9, 3.1, columns, dtype=dtype, device=DEVICE)
    return x.requires_grad_(), w.requires_grad_()


# The right kernel


@pytest.mark.parametrize(("layout", "gradients"), list(zip(cycle(LAYOUTS), GRADIENTS)))
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_right_kernel_is_accurate(dtype, layout, gradients):
    assert_as_accurate(right, reference, *inputs(dtype=dtype, layout=layout), gradients=gradients)


@examples(15)
@given(x=tensors(shape=shapes(2, 2, max_elements=128)), gradients=gradient_layouts())
def test_the_right_kernel_is_accurate_at_any_shape(x, gradients):
    w = random(x.shape[1:], x.dtype, seed=3).requires_grad_()
    if x.numel():
        assert_as_accurate(right, reference, x, w, gradients=gradients)


@interpreter_only
@pytest.mark.parametrize("layout", ["contiguous", "permuted", "half"])
def test_the_right_kernel_is_sound(layout):
    assert_sound(right, *inputs(layout=layout))


@interpreter_only
def test_the_right_kernel_is_sound_when_gradients_are_expanded():
    assert_sound(right, *inputs(), gradients="expanded")


@pytest.mark.parametrize(
    "check",
    [
        compiling.assert_compiles,
        compiling.assert_exports,
        compiling.assert_ignores_autocast,
        compiling.assert_checkpoints,
        compiling.assert_differentiates,
    ],
)
def test_the_right_kernel_goes_where_eager_goes(check):
    check(right, *inputs())


def test_the_right_kernel_compiles_under_inductor():
    compiling.assert_compiles(right, *inputs(), backends=("inductor",))


def test_the_right_kernel_is_registered():
    compiling.assert_registered(gated.registered, (*inputs(), ""), (*inputs(layout="half"), ""))


# Broken ones: each is caught by the check that is meant for it, and most are not seen by an ordinary test


SEEN_BY_NO_ORDINARY_TEST = [
    "mask off by one",
    "no upcast",
    "int32 offset",
    "update lost",
    "float atomics",
    "contiguous gradient",
]


@interpreter_only
@pytest.mark.parametrize("fault", SEEN_BY_NO_ORDINARY_TEST)
def test_faults_that_an_ordinary_test_does_not_see(fault):
    assert_as_accurate(faulty(fault), reference, *inputs())


@interpreter_only
def test_mask_off_by_one():
    with pytest.raises(AssertionError, match=r"guarded at their end: SIGSEGV[\s\S]* in forward_kernel"):
        assert_in_bounds(partial(results, faulty("mask off by one")), *inputs())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_no_upcast(dtype):
    with pytest.raises(AssertionError, match=r"output 1: .* beyond torch.float32's tolerances"):
        assert_as_accurate(faulty("no upcast"), reference, *inputs(2, 512, dtype))


@interpreter_only
def test_int32_offset_of_a_sample():
    with pytest.raises(AssertionError, match=r"2\^31 elements apart: SIGSEGV[\s\S]* in forward_kernel"):
        assert_reaches_far(faulty("int32 offset"), *(x.detach() for x in inputs()))


@interpreter_only
def test_gradients_that_lie_far_apart():
    x, w = (x.detach() for x in inputs())
    assert_reaches_far(lambda grad, x: gated_backward(grad, grad[:, 0], x, w, ""), torch.randn(5, 13), x)


@interpreter_only
def test_int32_offset_in_a_contiguous_tensor():
    def end_of_a_huge_tensor(fault):
        x = lazy(2**31 + 5, torch.float16)
        x[-5:] = 1
        with last_program():
            assert (double(x, fault)[-5:] == 2).all()

    assert died(lambda: end_of_a_huge_tensor("")) is None
    assert died(lambda: end_of_a_huge_tensor("int32 offset")).startswith("SIGSEGV")


@interpreter_only
def test_update_lost():
    lost = faulty("update lost")
    with pytest.raises(AssertionError, match=r"backward_w_kernel, launch 2: program \(0, 0, 0\)'s load and .* store meet at 8"):
        assert_race_free(lambda: results(lost, *inputs()))


@interpreter_only
def test_float_atomics():
    atomics = faulty("float atomics")
    assert_race_free(lambda: results(atomics, *inputs()))
    with pytest.raises(AssertionError, match="result 3 depends on the order"):
        assert_order_free(lambda: results(atomics, *inputs()))


@interpreter_only
@pytest.mark.parametrize(
    ("fault", "kinds"), [("relaxed atomic", "store .* load"), ("reads before the others stored", "load .* store")]
)
def test_a_counter_that_orders_too_little(fault, kinds):
    x = torch.randn(50)
    assert_race_free(lambda: blockwise_sum(x, ""))
    assert_order_free(lambda: blockwise_sum(x, ""))
    with pytest.raises(AssertionError, match=f"sum_kernel, launch 0: .* {kinds} meet at 1 address"):
        assert_race_free(lambda: blockwise_sum(x, fault))


def test_no_clamp():
    with pytest.raises(AssertionError, match=r"output 0: .* beyond torch.float32's tolerances"):
        assert_as_accurate(faulty("no clamp"), reference, *inputs())
    with pytest.raises(GradcheckError):
        compiling.assert_differentiates(faulty("no clamp in backward"), *inputs(2, 3))


def test_element_unwritten():
    with pytest.raises(AssertionError, match=r"result 0 depends on uninitialised memory: 5 of 65 .* at \(0, 12\)"):
        assert_all_written(faulty("element unwritten"), *inputs())


def test_contiguous_gradient():
    flawed = faulty("contiguous gradient")
    with pytest.raises(AssertionError, match="gradient of input 0"):
        assert_as_accurate(flawed, reference, *inputs(), gradients="expanded")
    with pytest.raises(AssertionError, match="gradients that arrive permuted"):
        compiling.assert_differentiates(flawed, *inputs())


# The error policy


def in_bf16(x, lanes=128):
    """The sum of each row as a kernel without an upcast makes it: lane by lane over the blocks, then pairwise."""
    partial = x[:, :lanes]
    for start in range(lanes, x.shape[1], lanes):
        partial = partial + x[:, start : start + lanes]
    while partial.shape[1] > 1:
        partial = partial[:, 0::2] + partial[:, 1::2]
    return partial[:, 0]


def test_a_long_sum_needs_its_upcast():
    x = torch.randn(16, 4096, generator=torch.Generator().manual_seed(0)).bfloat16()
    peer, exact = x.sum(1), x.double().sum(1)
    assert_accurate(in_bf16(x.float()).bfloat16(), peer, exact)
    with pytest.raises(AssertionError, match="result: "):
        assert_accurate(in_bf16(x), peer, exact)


def test_errors_everywhere_and_in_one_place():
    exact = torch.linspace(1, 2, 1000, dtype=torch.float64)
    peer = exact.float()
    assert_accurate(peer.clone(), peer, exact)
    with pytest.raises(AssertionError, match=r"largest error 4.*twice the peer's 5.95e-08 and 1.19e-07"):
        assert_accurate(peer + 4e-7 * (torch.arange(1000) == 500), peer, exact)

    exact[-1] = 8  # and what is allowed there hides 3 units in the last place elsewhere
    peer = exact.float()
    with pytest.raises(AssertionError, match="root mean square error"):
        assert_accurate(peer + 3 * 2.0**-23, peer, exact)


def test_small_values_are_not_accepted_whatever_they_are():
    exact = torch.linspace(1, 2, 8, dtype=torch.float64) * 1e-6
    peer = exact.float()
    assert_accurate(peer, peer, exact)
    with pytest.raises(AssertionError, match="8 of 8 elements beyond"):
        assert_accurate(peer * 1.001, peer, exact)


@pytest.mark.parametrize(("place", "value"), [(0, 1.0), (1, torch.inf), (1, torch.nan), (2, torch.nan), (3, 1.0)])
def test_nan_and_inf_stand_where_they_belong(place, value):
    exact = torch.tensor([torch.nan, 2.0, torch.inf, -torch.inf], dtype=torch.float64)
    peer = exact.float()
    assert_accurate(peer, peer, exact)
    wrong = peer.clone()
    wrong[place] = value
    with pytest.raises(AssertionError, match=rf"at \({place},\) .* 1 wrong NaN, inf or finite elements"):
        assert_accurate(wrong, peer, exact)


def test_an_element_where_the_peer_overflows_is_looked_at():
    exact, peer = torch.ones(100, dtype=torch.float64), torch.ones(100)
    peer[3] = torch.inf
    assert_accurate(torch.ones(100), peer, exact)
    with pytest.raises(AssertionError, match=r"2 at \(3,\) where 1 is right"):
        assert_accurate(torch.ones(100) + (torch.arange(100) == 3), peer, exact)


def test_dtype_and_shape():
    x = torch.ones(3)
    with pytest.raises(AssertionError, match=r"result: expected torch.float32, got torch.float16"):
        assert_accurate(x.half(), x, x.double())
    with pytest.raises(AssertionError, match=r"result: expected shape \(3,\), got \(1,\)"):
        assert_accurate(x[:1], x, x.double())
    with pytest.raises(AssertionError, match="the op returns output 0, its peer output 0, output 1"):
        assert_as_accurate(lambda x: x, lambda x: (x, x), x)


@pytest.mark.parametrize("dtype", FLOATS)
def test_tolerances_are_those_of_torch_testing(dtype):
    relative, absolute = accuracy.TOLERANCES[dtype]
    torch.testing.assert_close(torch.tensor(1, dtype=dtype), torch.tensor(1 + 0.9 * relative + absolute, dtype=dtype))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(
            torch.tensor(1.0).double(), 1 + torch.tensor(1.1).double() * (relative + absolute), rtol=relative, atol=absolute
        )


# What is not as in eager


def test_a_recompilation_for_each_batch_size_is_noticed():
    with pytest.raises(AssertionError, match="aot_eager compiled 3 times for 3 batch sizes"):
        compiling.assert_compiles(lambda x: x * 2 if len(x) > 4 else x + x, torch.randn(6, 2))


def test_a_dtype_that_autocast_changes_is_noticed():
    with pytest.raises(AssertionError, match=r"under autocast: .*dtype"):
        compiling.assert_ignores_autocast(lambda x: x @ x, torch.randn(4, 4, device=DEVICE))


def test_a_second_forward_that_differs_is_noticed():
    calls = iter(range(1, 10))
    with pytest.raises(AssertionError, match="checkpointed: "):
        compiling.assert_checkpoints(lambda x: x.square() * next(calls), torch.ones(3, requires_grad=True))


def test_an_op_that_cannot_be_exported_is_noticed():
    with pytest.raises(Exception, match=r"specialized|constraint|Constraint"):
        compiling.assert_exports(lambda x: x * 2 if len(x) == 6 else x, torch.randn(6, 2))


def test_a_fake_that_lies_is_noticed():
    with torch.library._scoped_library("laboratory", "DEF") as library:
        library.define("transposed(Tensor x) -> Tensor")
        library.impl("transposed", lambda x: x.t().clone(), "CompositeExplicitAutograd")
        torch.library.register_fake("laboratory::transposed", lambda x: x.new_empty(x.shape[::-1]), lib=library)
        with pytest.raises(Exception, match="opcheck"):
            compiling.assert_registered(torch.ops.laboratory.transposed.default, (torch.randn(2, 3),))


def test_a_batch_too_small_to_be_varied_is_refused():
    with pytest.raises(ValueError, match="the batch must be 4 or more"):
        compiling.assert_compiles(torch.sin, torch.randn(3))


# The tools


@interpreter_only
def test_recording():
    x, w = (x.detach() for x in inputs(2, 3))
    with recorded() as log:
        y, total = right(x, w)
        right(x, w)
    assert log.launches == ["forward_kernel"] * 2
    first = [access for access in log if access.launch == 0 and access.program == (1, 0, 0)]
    assert [access.kind for access in first] == ["load", "load", "store", "store"]
    for access, expected in zip(first, (w.data_ptr(), x[1].data_ptr(), y[1].data_ptr()), strict=False):
        np.testing.assert_array_equal(access.addresses, expected + 4 * np.arange(3))
    np.testing.assert_array_equal(first[3].addresses, [total[1].data_ptr()])
    assert {access.width for access in log} == {4}


@interpreter_only
def test_shuffling():
    orders = []
    for seed in (0, 0, 1):
        with shuffled(seed), recorded() as log:
            right(*inputs(20, 3))
        orders.append(list(dict.fromkeys(access.program for access in log)))
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == [(i, 0, 0) for i in range(20)]


@interpreter_only
@pytest.mark.parametrize("context", [recorded, partial(shuffled, 0), last_program])
def test_hooks_are_undone_after_an_error(context):
    before = GridExecutor.__call__, set(vars(interpreter_builder))

    def fails():
        with context():
            assert (GridExecutor.__call__, set(vars(interpreter_builder))) != before
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert (GridExecutor.__call__, set(vars(interpreter_builder))) == before


@interpreter_only
def test_a_check_of_nothing_fails():
    with pytest.raises(AssertionError, match="no kernel was launched"):
        assert_race_free(lambda: reference(*inputs()))


@interpreter_only
@pytest.mark.parametrize("side", ["end", "start"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_guarded_tensors(layout, side):
    x = random((3, 5, 7), torch.bfloat16, layout)
    copy = guarded(x, side)
    assert copy.equal(x)
    assert copy.stride() == x.stride()
    memory = copy.untyped_storage()
    inside, outside = (-1, 0) if side == "end" else (0, -1)
    border = memory.data_ptr() + (memory.nbytes() if side == "end" else 0)
    assert died(lambda: ctypes.string_at(border + inside, 1)) is None
    assert died(lambda: ctypes.string_at(border + outside, 1)).startswith("SIGSEGV")


def test_expanded_and_empty_tensors_are_guarded():
    assert guarded(torch.ones(3, 1).expand(3, 4)).stride() == (1, 0)
    assert guarded(torch.ones(3, 0)).shape == (3, 0)


def test_far_tensors_take_no_memory():
    def stretch():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        x = torch.randn(3, 4, 5)
        apart = far(x)
        assert apart.equal(x)
        assert apart.stride() == (2**30, 5, 1)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000  # KB

    assert died(stretch) is None


def test_poison():
    with poisoned():
        assert torch.empty(3).isnan().all()
        assert torch.ones(3).new_empty(2, dtype=torch.float16).isnan().all()
        assert torch.empty_like(torch.zeros(3, dtype=torch.int16)).eq(2**15 - 1).all()
        assert torch.zeros(3).eq(0).all()


def test_layouts_keep_values():
    x = random((4, 6, 3, 5))
    strides = {layout: arrange(x).stride() for layout, arrange in LAYOUTS.items()}
    assert all(arrange(x).equal(x) for arrange in LAYOUTS.values())
    assert len(set(strides.values())) == len(strides), strides


def test_a_child_that_dies_tells_why():
    assert died(lambda: None) is None
    assert "ZeroDivisionError" in died(lambda: 1 / 0)


def test_samples():
    for sample in op_samples("nn.functional.group_norm"):
        assert F.group_norm(sample.input, *sample.args, **sample.kwargs).shape == sample.input.shape
    assert any(not sample.input.is_contiguous() for sample in op_samples("nn.functional.group_norm"))
    for error in op_errors("nn.functional.group_norm"):
        with pytest.raises(error.error_type, match=error.error_regex):
            F.group_norm(error.sample_input.input, *error.sample_input.args, **error.sample_input.kwargs)
    with pytest.raises(ValueError, match=r"got 'nn.functional.no_such'"):
        op_info("nn.functional.no_such")
