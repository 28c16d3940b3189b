"""The kernels of geglu against its reference, by the laboratory's checks."""

import pytest
import torch

from fastgen.functional import geglu
from fastgen_kernels import geglu_triton as kernels
from fastgen_kernels.geglu import _geglu, _geglu_backward, geglu_reference
from proof.interpreter import last_program, recorded
from proof.laboratory.accuracy import assert_accurate, assert_as_accurate, results
from proof.laboratory.compiling import (
    assert_checkpoints,
    assert_compiles,
    assert_differentiates,
    assert_exports,
    assert_ignores_autocast,
    assert_registered,
)
from proof.laboratory.device import DEVICE, interpreter_only
from proof.laboratory.far import lazy
from proof.laboratory.soundness import assert_sound
from proof.laboratory.strategies import dtypes, examples, given, gradient_layouts, layouts, shapes
from proof.laboratory.tensors import FLOATS, LAYOUTS, random

pytestmark = pytest.mark.kernels


def inputs(shape, dtype=torch.float32, layout="contiguous"):
    return random(shape, dtype, layout).requires_grad_()


@pytest.mark.kill
@pytest.mark.parametrize(
    "shape",
    [
        (2,),
        (130, 34),  # two programs, the second of which begins within a row
        (2, 5, 6),
        (3, 2, 1, 16),
        (1, 4100),  # a row of more elements than a program takes
    ],
)
def test_accurate(shape):
    assert_as_accurate(geglu, geglu_reference, inputs(shape))


@pytest.mark.kill
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_dtype(dtype):
    """In 16 bits the reference, like PyTorch, rounds the GELU, and is no measure of tails; fp32's is."""
    x = inputs((9, 74), dtype)
    ours, peers = results(geglu, x), results(geglu_reference, x)
    exact = results(geglu_reference, x.detach().double().requires_grad_())
    for name in ours:
        assert_accurate(ours[name], peers[name], exact[name], name, cancels=dtype.itemsize == 2)


@pytest.mark.kill
@pytest.mark.parametrize("dtype", FLOATS)
def test_gates_from_end_to_end(dtype):
    """From where GELU is 0 to where it is the identity, and its least value, at -0.75, where its slope is 0."""
    gate = torch.tensor([-30.0, -6.0, -3.0, -1.0, -0.7517916, -1e-3, 0.0, 1e-3, 0.5, 2.0, 5.0, 30.0], device=DEVICE)
    x = torch.stack((torch.full_like(gate, 3.0), gate), -1).to(dtype).requires_grad_()
    exact = x.detach().double()[:, 1]
    y = geglu(x)
    (dx,) = torch.autograd.grad(y.sum(), x)
    cdf = torch.special.ndtr(exact)
    slope = cdf + exact * torch.exp(-exact.square() / 2) / (2 * torch.pi) ** 0.5
    tolerance = {"rtol": 0, "atol": 100 * torch.finfo(dtype).eps}
    torch.testing.assert_close(y[:, 0].double(), 3 * exact * cdf, **tolerance)
    torch.testing.assert_close(dx.double(), torch.stack((exact * cdf, 3 * slope), -1), **tolerance)


@pytest.mark.kill
def test_arithmetic_in_fp32():
    """One rounding, at the end: what fp32 gives, rounded."""
    for dtype in (torch.float16, torch.bfloat16):
        x = inputs((5, 34), dtype)
        ours, wide = results(geglu, x), results(geglu, x.detach().float().requires_grad_())
        for name, truth in wide.items():
            rounding = {"rtol": 2.0**-7, "atol": 0} if dtype == torch.bfloat16 else {"rtol": 0, "atol": 0}  # truncated
            torch.testing.assert_close(ours[name], truth.to(dtype), **rounding)


@pytest.mark.kill
@pytest.mark.parametrize(("layout", "gradients"), [*zip(LAYOUTS, LAYOUTS, strict=True), ("contiguous", "expanded")])
def test_any_layout(layout, gradients):
    assert_as_accurate(geglu, geglu_reference, inputs((2, 4, 6), layout=layout), gradients=gradients)


@pytest.mark.slow
@examples(25)
@given(shapes(max_elements=2**10), layouts(), dtypes(torch.float32, torch.float64), gradient_layouts())
def test_any_tensors(shape, layout, dtype, gradients):
    x = inputs((*shape[:-1], 2 * shape[-1]), dtype, layout)
    assert_as_accurate(geglu, geglu_reference, x, gradients=gradients)


@pytest.mark.kill
@pytest.mark.parametrize("shape", [(0, 6), (2, 0, 6), (3, 0)])
def test_empty(shape):
    ours, expected = (results(f, inputs(shape)) for f in (geglu, geglu_reference))
    assert {name: x.shape for name, x in ours.items()} == {name: x.shape for name, x in expected.items()}


@pytest.mark.kill
def test_nan_stays_in_its_place():
    x = inputs((3, 8))
    with torch.no_grad():
        x[1, 2], x[2, 5] = torch.nan, torch.nan
    ours = results(geglu, x)
    assert ours["output 0"].isnan().nonzero().tolist() == [[1, 2], [2, 1]]
    assert ours["gradient of input 0"].isnan().nonzero().tolist() == [[1, 6], [2, 1], [2, 5]]


@interpreter_only
@pytest.mark.kill
def test_a_program_takes_2048_elements():
    with recorded() as log:
        y = geglu(random((3, 2 * 1000)))
    assert len({access.program for access in log}) == 2
    assert len(y) == 3


@interpreter_only
@pytest.mark.kill
@pytest.mark.parametrize(("shape", "layout"), [((5, 6), "contiguous"), ((3, 2, 10), "half"), ((7, 14), "row_gap")])
def test_sound(shape, layout):
    assert_sound(geglu, inputs(shape, layout=layout))


@interpreter_only
@pytest.mark.kill
def test_elements_beyond_int32():
    """The last program of launches over more than 2^31 elements, which are not all there: x, dense and of rows far apart."""
    rows, d = 2**20 + 3, 1024
    dense, dy = lazy(rows * 2 * d, torch.bfloat16).view(rows, 2 * d), lazy(rows * d, torch.bfloat16).view(rows, d)
    far = lazy(4 * 2**30, torch.bfloat16).as_strided((3, 2 * d), (2**30, 1))
    for x in (dense, far):
        x[-2:], upstream = random((2, 2 * d), torch.bfloat16), dy[-len(x) :]
        upstream[-2:] = random((2, d), torch.bfloat16, seed=1)
        with last_program():
            y, dx = kernels.forward(x), kernels.backward(upstream, x)
        end = x[-2:].clone()
        assert y[-1].equal(kernels.forward(end)[-1])
        assert dx[-1].equal(kernels.backward(upstream[-2:].clone(), end)[-1])


@interpreter_only
def test_one_launch_each_way_and_x_alone_kept():
    x = inputs((2, 8, 64), torch.bfloat16)
    saved = []
    with recorded() as log, torch.autograd.graph.saved_tensors_hooks(lambda y: saved.append(y) or y, lambda y: y):
        y = geglu(x)
        assert log.launches == ["forward_kernel"]
        y.backward(y.detach())
        assert log.launches == ["forward_kernel", "backward_kernel"]
    assert [y.data_ptr() for y in saved] == [x.data_ptr()]


def test_registered():
    x = inputs((2, 3, 8))
    assert_registered(_geglu.registered, (x,))
    assert_registered(_geglu_backward.registered, (random((2, 3, 4)), x.detach()))


@pytest.mark.parametrize("layout", ["contiguous", "row_gap"])
def test_differentiates(layout):
    assert_differentiates(geglu, inputs((3, 2, 6), layout=layout))


def test_compiles_exports_and_checkpoints():
    x = inputs((5, 2, 24))
    assert_compiles(geglu, x)
    assert_exports(geglu, x)
    assert_checkpoints(geglu, x)
    assert_ignores_autocast(geglu, x)


@pytest.mark.slow
def test_inductor():
    assert_compiles(geglu, inputs((5, 2, 24)), backends=("inductor",))
