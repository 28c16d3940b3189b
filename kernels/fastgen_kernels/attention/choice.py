"""Where attention takes its kernels and where scaled_dot_product_attention; and which backward pass the kernels have."""

from collections.abc import Iterable

import torch
from torch import Tensor

from fastgen_kernels.attention.table import Row, read
from fastgen_kernels.dispatch import capability, interpreted

Classes = tuple[tuple[int, int, bool], ...]  # D, keys, and whether kernels are faster, from the smallest to the largest


def by_architecture(rows: Iterable[Row]) -> dict[tuple[str, int], Classes]:
    """The classes of each compute capability and number of bits."""
    found: dict[tuple[str, int], Classes] = {}
    for row in sorted(rows, key=lambda row: row.at):
        kind = row.capability, row.bits
        found[kind] = *found.get(kind, ()), (row.columns, row.keys, row.faster == "kernels")
    return found


TABLE = by_architecture(read())


def kernels_are_faster(d: int, keys: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernels are faster than scaled_dot_product_attention for D columns and so many keys; always in the interpreter,
    whose purpose is to run them."""
    return interpreted() or listed_as_faster(d, keys, dtype, capability(device))


def listed_as_faster(d: int, keys: int, dtype: torch.dtype, capability: tuple[int, int]) -> bool:
    """What the table says of the smallest class that holds the call; False, for SDPA, where no class does."""
    for columns, most, kernels in classes(dtype, capability):
        if d <= columns and keys <= most:
            return kernels
    return False


def classes(dtype: torch.dtype, capability: tuple[int, int]) -> Classes:
    """The table's classes for an architecture and a dtype; none where it does not list them, for tiles are proven for one
    architecture at a time."""
    return TABLE.get(("{}.{}".format(*capability), 8 * dtype.itemsize), ())


# Dynamo calls it instead of guarding every row.
classes._dynamo_marked_constant = True  # type: ignore[attr-defined]


def has_kernels(device: torch.device) -> bool:
    """Whether kernels are taken for any size in 16 bits."""
    return any(kernels for _, _, kernels in classes(torch.bfloat16, capability(device)))


def readable(*heads: Tensor) -> bool:
    """Whether tiles of heads (N, H, S, D) are read 16 bytes at a time and without spills: columns a multiple of 8, and they lie
    side by side or positions do, a multiple of 16. In the interpreter it does not matter."""
    return interpreted() or all(
        x.shape[3] % 8 == 0 and (x.stride(3) == 1 or (x.stride(2) == 1 and x.stride(3) % 16 == 0)) for x in heads
    )


def one_tile(d: int, keys: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether in backward a program holds all keys of a head, so that the output need not be kept: where registers hold them and
    their gradients without spilling, as `python kernels/proof aot --op attention` shows."""
    if dtype.itemsize > 2:
        return False
    if not is_hopper(device):
        return d <= 64 and keys <= 128
    return keys <= 256 if d <= 64 else d <= 128 and keys <= 128


def is_hopper(device: torch.device) -> bool:
    """Its products read what is in shared memory, which saves registers."""
    return capability(device) == (9, 0)
