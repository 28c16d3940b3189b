r"""Counter-based noise: Philox 4x32-10 under a key of one row a sample.

    words(j) = philox(counter = (j, sample, stream, step), key = seed)      the four 32-bit words of block j
    uniform  = ((word >> 9) + 1/2) · 2^-23                                  in (0, 1), exact in fp32
    normals  = r·cos(theta), r·sin(theta)                                   of words a, b = 0, 1 and 2, 3 (Box-Muller)
               r = sqrt(-2 ln((a + 1/2) · 2^-32)),  theta = int32(b) · pi · 2^-31

A sample of E elements, in the contiguous order of its (C, *S), uses Q = ceil(E/4) blocks: element e takes word e // Q
of block e % Q. So the numbers of a sample depend on its row of the key alone: not on the batch around it, the device,
the memory format or the block size of a kernel.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3. The integers
are those of `tl.philox(seed, j, sample, stream, step)`.
"""

import math
import sys
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastgen_kernels.checks import check_dtype, check_integer, check_key, check_range
from fastgen_kernels.dispatch import use_triton
from fastgen_kernels.library import define
from fastgen_kernels.messages import shown

_MASK = 0xFFFFFFFF
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85
_HIGH = 1 if sys.byteorder == "little" else 0  # where the upper half of a 64-bit word lies, read as two of 32


def noise_key(
    seed: int | Tensor,
    stream: int | Tensor = 0,
    step: int | Tensor = 0,
    samples: int | Sequence[int] | Tensor = 1,
    device: torch.device | str | None = None,
) -> Tensor:
    """The key that noise is drawn under: int64 (N, 4), a row a sample: seed, stream, step, global sample index.

    seed: in [0, 2^63); a whole run has one.
    stream: in [0, 2^32); what the noise is for, so that time, label dropout and eps differ within a step.
    step: in [0, 2^32); the training or sampling step.
    samples: how many, for the indices 0 to N-1, or the global indices themselves, (N,), each in [0, 2^32): rank r of R
        ranks with N samples each passes range(r*N, (r+1)*N) and draws what one process would.
    device: of the key, and so of the noise; by default that of `samples`, or the CPU.

    seed, stream and step may be scalar int64 tensors on the device, which nothing waits for and whose values nothing checks;
    those of `samples` are checked on a CPU alone.

    Raises TypeError for a seed, stream, step or samples that are no integers, ValueError for one out of range, for samples that
    are not 1-D and for a device that torch does not know.
    """
    _check_range("seed", seed, 63)
    _check_range("stream", stream, 32)
    _check_range("step", step, 32)
    index = _indices(samples, _device(device))
    return torch.stack((_column(seed, index), _column(stream, index), _column(step, index), index), 1)


def _indices(samples: int | Sequence[int] | Tensor, device: torch.device | None) -> Tensor:
    """The global indices of samples, int64 (N,)."""
    expected = "samples: expected a count, or indices from 0 to 2^32 - 1 as a range, a list or a 1-D tensor of integers"
    if isinstance(samples, range):
        if len(samples) and not all(0 <= end < 2**32 for end in (samples[0], samples[-1])):
            raise ValueError(f"{expected}, got {samples}")
        return torch.arange(samples.start, samples.stop, samples.step, device=device)
    if isinstance(samples, int):
        _check_range("samples", samples, 32)
        return torch.arange(samples, device=device)
    if not isinstance(samples, Tensor):
        if not isinstance(samples, Sequence) or not all(isinstance(i, int | np.integer) for i in samples):
            raise TypeError(f"{expected}, got {shown(samples)}")
        samples = torch.tensor([min(max(i, -1), 2**32) for i in samples], dtype=torch.int64)  # what is out of range stays so
    if samples.dim() != 1:
        raise ValueError(f"{expected}, got shape {tuple(samples.shape)}")
    if samples.dtype not in _INTEGERS:
        raise TypeError(f"{expected}, got {samples.dtype}")
    check_range("samples", samples, 0, 2**32 - 1)
    return samples.to(device, torch.int64)


def _device(device: torch.device | str | None) -> torch.device | None:
    try:
        return None if device is None else torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device: expected a device of torch, such as cpu or cuda, got {shown(device)}") from None


def at(key: Tensor, *, stream: int | Tensor | None = None, step: int | Tensor | None = None) -> Tensor:
    """The same key (N, 4) at another stream or step, each an int in [0, 2^32) or a scalar int64 tensor; a copy.

    Raises TypeError for what is no key or no integer, ValueError for a key not (N, 4) and a stream or step out of range.
    """
    check_key(key)
    _check_range("stream", 0 if stream is None else stream, 32)
    _check_range("step", 0 if step is None else step, 32)
    columns = list(key.unbind(1))
    if stream is not None:
        columns[1] = _column(stream, key[:, 1])
    if step is not None:
        columns[2] = _column(step, key[:, 2])
    return torch.stack(columns, 1)


def fresh_key(n: int, device: torch.device | str | None = None) -> Tensor:
    """A key (n, 4) with a seed from the device's torch generator: what the ops draw under when they are given none. Raises
    TypeError for an n that is no integer, ValueError for one out of range."""
    check_integer("n", n, 0, 2**32)
    return noise_key(torch.randint(2**63 - 1, (), device=device), samples=n, device=device)


def philox_normal(
    shape: Sequence[int], key: Tensor, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> Tensor:
    """Standard normal noise of a shape (N, *rest), contiguous; key[i] alone makes sample i.

    The numbers are made in fp32, at most 6.8 in magnitude, and cast to `dtype`, any float. They are on `device`, by default
    the key's. The integers underneath are the same everywhere; log, sin and cos may differ in the last bit.

    Raises TypeError for a shape that is not integers, a key that is not int64 or a dtype that is not a float, ValueError for a
    key not (N, 4) and a shape that has none or too many elements: a sample has at most 2^34.
    """
    key = _on_device(shape, key, dtype, device)
    if use_triton(key):
        return _philox_op(shape, key, dtype, True)
    words = _words(shape, key)
    radius = words[:, 0::2].float().add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    theta = words[:, 1::2].int().float().mul_(math.pi * 2.0**-31)
    return _cut(torch.stack((radius * theta.cos(), radius * theta.sin()), 2), shape, dtype)


def philox_uniform(
    shape: Sequence[int], key: Tensor, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> Tensor:
    """Uniform noise of a shape (N, *rest), contiguous, strictly inside (0, 1); key[i] alone makes sample i.

    The numbers are odd multiples of 2^-24 in fp32, cast to `dtype` (where fp16 and bf16 may round to 0 or 1). They
    are on `device`, by default the key's, and the same bits everywhere.

    Raises TypeError for a shape that is not integers, a key that is not int64 or a dtype that is not a float, ValueError for a
    key not (N, 4) and a shape that has none or too many elements: a sample has at most 2^34.
    """
    key = _on_device(shape, key, dtype, device)
    if use_triton(key):
        return _philox_op(shape, key, dtype, False)
    words = _words(shape, key)
    return _cut((words >> 9).float().add_(0.5).mul_(2.0**-23), shape, dtype)


def _on_device(shape: Sequence[int], key: Tensor, dtype: torch.dtype, device: torch.device | str | None) -> Tensor:
    """The key on the device of the numbers, after all arguments have been checked."""
    if not isinstance(shape, Sequence) or not all(isinstance(side, int | torch.SymInt) for side in shape):
        raise TypeError(f"shape: expected (N, *rest), whole numbers, got {shown(shape)}")
    if len(shape) == 0:
        raise ValueError("shape: expected (N, *rest), got ()")
    if min(shape) < 0 or math.prod(shape[1:]) > 2**34:
        raise ValueError(f"shape: expected (N, *rest), each >= 0, of at most 2^34 elements a sample, got {shown(tuple(shape))}")
    check_dtype(dtype)
    check_key(key, shape[0])
    return key if device is None else key.to(_device(device))


def _words(shape: Sequence[int], key: Tensor) -> Tensor:
    """The four words of every block: (N, 4, Q) int64 in [0, 2^32)."""
    block = torch.arange(-(-math.prod(shape[1:]) // 4), device=key.device)
    if key.device.type == "cpu" and not torch.compiler.is_compiling():
        return _philox_numpy(block, key)
    return _philox(block, key)


def _philox(block: Tensor, key: Tensor) -> Tensor:
    """Philox 4x32-10 of blocks (Q,) under keys (N, 4): words (N, 4, Q)."""
    seed, stream, step, sample = key.unsqueeze(2).unbind(1)  # [N, 1]
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    c0, c1, c2, c3 = block[None], sample & _MASK, stream & _MASK, step & _MASK
    for _ in range(10):
        (high0, low0), (high1, low1) = _multiply(c0, _MULTIPLIERS[0]), _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return torch.stack((c0, c1, c2, c3), 1)


def _multiply(word: Tensor, by: int) -> tuple[Tensor, Tensor]:
    """The upper and the lower 32 bits of the product of two 32-bit words, in int64. By halves, which stay below 2^49: where
    Inductor writes C++, the compiler relies on signed products not to overflow."""
    low, high = (word & 0xFFFF) * by, (word >> 16) * by
    return (high + (low >> 16)) >> 16, (((high & 0xFFFF) << 16) + low) & _MASK


def _philox_numpy(block: Tensor, key: Tensor) -> Tensor:
    """The same words on the CPU in a fraction of the time: both products of a round in one array, whose 64 bits are read as
    two words each, and 2^15 blocks at a time, which stay in the cache."""
    words = np.empty((len(key), 4, len(block)), np.int64)
    some = max(1, 2**15 // max(1, len(block)))
    multipliers, weyl = (np.array(pair, np.uint64).reshape(2, 1, 1) for pair in (_MULTIPLIERS, _WEYL))
    for start in range(0, len(words), some):
        seed, stream, step, sample = key[start : start + some].numpy().T[..., None]  # [n, 1]
        k = np.stack([seed, seed >> 32]).astype(np.uint32)
        even, odd = np.empty((2, 2, len(seed), len(block)), np.uint32)  # words 0 and 2, words 1 and 3
        even[0], even[1] = block.numpy().astype(np.uint32), stream.astype(np.uint32)
        odd[0], odd[1] = sample.astype(np.uint32), step.astype(np.uint32)
        for _ in range(10):
            product = (even * multipliers)[::-1].view(np.uint32).reshape(*even.shape, 2)
            even, odd = product[..., _HIGH] ^ odd ^ k, product[..., 1 - _HIGH]
            k = k + weyl.astype(np.uint32)
        words[start : start + some, 0::2], words[start : start + some, 1::2] = even.swapaxes(0, 1), odd.swapaxes(0, 1)
    return torch.from_numpy(words)


def _cut(values: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Blocks (N, ..., Q) flattened and cut to the elements of a sample."""
    elements = math.prod(shape[1:])
    return values.reshape(shape[0], 4 * values.shape[-1])[:, :elements].reshape(shape).contiguous().to(dtype)


def _column(value: int | Tensor, like: Tensor) -> Tensor:
    return value.to(like).expand_as(like) if isinstance(value, Tensor) else torch.full_like(like, value)


def _check_range(name: str, value: object, bits: int) -> None:
    if isinstance(value, Tensor):
        if value.dtype not in _INTEGERS or value.dim() != 0:
            raise TypeError(
                f"{name}: expected an integer, or one in a 0-dim tensor, got {value.dtype} of shape {tuple(value.shape)}"
            )
    elif not isinstance(value, int | torch.SymInt | np.integer):
        raise TypeError(f"{name}: expected an integer in [0, 2^{bits}), got {shown(value)}")
    elif not isinstance(value, torch.SymInt) and not 0 <= value < 2**bits:
        raise ValueError(f"{name}: expected a number in [0, 2^{bits}), got {shown(value)}")


def _fake(shape: Sequence[int], key: Tensor, dtype: torch.dtype, normal: bool) -> Tensor:
    return key.new_empty(shape, dtype=dtype)


_philox_op = define(
    "philox(SymInt[] shape, Tensor key, ScalarType dtype, bool normal) -> Tensor", "fastgen_kernels.philox_triton:philox", _fake
)
