"""Which device "auto" is."""

import pytest
import torch

from fastgen.device import resolve_device

NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="cuda is taken before mps")


@pytest.fixture
def mps(monkeypatch):
    """A machine with mps, as far as PyTorch says."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


@NO_CUDA
def test_mps_is_taken_where_it_computes_what_is_needed(mps, monkeypatch, recwarn):
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, device=None, **more: zeros(*size, **more))
    assert resolve_device("auto") == resolve_device("mps") == torch.device("mps")
    assert not recwarn


@NO_CUDA
def test_it_is_said_why_mps_is_not_taken(mps, monkeypatch):
    def zeros(*size, **_):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")

    monkeypatch.setattr(torch, "zeros", zeros)
    with pytest.warns(UserWarning, match=r"device: auto is cpu here, since mps lacks what is needed .*doesn't support float64"):
        assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"device: expected auto, cpu, or a device of this machine, got 'mps' .*float64"):
        resolve_device("mps")
