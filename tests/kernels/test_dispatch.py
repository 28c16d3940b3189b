import pytest
import torch

import fastgen
from fastgen.functional import philox_normal, reparameterize_kl
from fastgen_kernels import dispatch
from fastgen_kernels.dispatch import obstacle, use_triton
from tests.helpers.environments import printed_under

CPU = torch.zeros(1)


def test_environment():
    code = (
        "import torch; from fastgen_kernels.dispatch import *; x = torch.zeros(1);"
        "print(use_triton(x), obstacle(x.device), switched_off())"
    )
    expected = [
        ({}, "False the device is a CPU False"),
        ({"TRITON_INTERPRET": "1"}, "True None False"),
        ({"FASTGEN_KERNELS": "on", "TRITON_INTERPRET": "1"}, "True None False"),
        ({"FASTGEN_KERNELS": "off", "TRITON_INTERPRET": "1"}, "False None True"),
        ({"FASTGEN_KERNELS": "0"}, "ValueError: FASTGEN_KERNELS: expected on or off, got '0'"),
    ]
    assert printed_under([environment for environment, _ in expected], code) == [line for _, line in expected]


@pytest.mark.kernels
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs Triton's interpreter, which is used where there is no GPU")
def test_disabled():
    assert use_triton(CPU, None)
    with fastgen.disabled():
        assert not use_triton(CPU)
        with fastgen.disabled():
            assert not use_triton(CPU)
        assert not use_triton(CPU)
    assert use_triton(CPU)
    with pytest.raises(RuntimeError), fastgen.disabled():
        raise RuntimeError
    assert use_triton(CPU)


@pytest.mark.kernels
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs Triton's interpreter, which is used where there is no GPU")
def test_compiled_code_follows_the_switch(monkeypatch):
    launched = []
    monkeypatch.setattr("fastgen_kernels.philox_triton.philox", lambda shape, *_: launched.append(1) or torch.zeros(shape))
    compiled = torch.compile(lambda key: philox_normal((2, 3), key), fullgraph=True, backend="aot_eager")
    key = fastgen.functional.noise_key(0, samples=2)
    for off, launches in [(False, 1), (True, 1), (False, 2)]:
        with fastgen.disabled() if off else torch.no_grad():
            compiled(key)
        assert len(launched) == launches


@pytest.mark.kernels
def test_one_tensor_elsewhere_takes_the_reference():
    assert not use_triton(CPU, CPU.to("meta"))
    assert obstacle(torch.device("meta")) == "the device is no NVIDIA GPU"


def test_fp64_takes_the_reference_but_in_the_interpreter(monkeypatch):
    wide = CPU.double()
    monkeypatch.setattr(dispatch, "_enabled", True)
    monkeypatch.setattr(dispatch, "obstacle", lambda device: None)
    for interpreted in (True, False):
        monkeypatch.setattr(dispatch, "_INTERPRETED", interpreted)
        assert use_triton(CPU, None, dtype=torch.float16)
        assert use_triton(wide) == use_triton(CPU, wide) == use_triton(CPU, dtype=torch.float64) == interpreted


def test_old_gpus_take_the_reference(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    for capability, reason in [((7, 5), "compute capability 8.0 or newer is needed, the device has 7.5"), ((9, 0), None)]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, capability=capability: capability)
        assert obstacle(torch.device("cuda")) == reason
    monkeypatch.setattr(torch.version, "cuda", None)
    assert obstacle(torch.device("cuda")) == "the device is no NVIDIA GPU"  # ROCm's GPUs have the type cuda too
    monkeypatch.setattr(dispatch, "_INSTALLED", False)
    assert obstacle(torch.device("cuda")) == "triton is not installed"


@pytest.mark.kernels
def test_second_derivatives_say_what_to_do():
    x = torch.ones(2, 3, device="cuda" if torch.cuda.is_available() else "cpu", requires_grad=True)
    (grad,) = torch.autograd.grad(reparameterize_kl(x, x)[1].sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"call the op inside fastgen.disabled\(\)"):
        grad.sum().backward()
    with fastgen.disabled():
        (grad,) = torch.autograd.grad(reparameterize_kl(x, x)[1].sum(), x, create_graph=True)
        grad.sum().backward()
    torch.testing.assert_close(x.grad, 1 + x.exp() / 2)
