"""The checks that watch a kernel's memory, together: for ops in the interpreter, forward and backward."""

from collections.abc import Callable
from functools import partial
from typing import Any

from proof.laboratory.accuracy import results
from proof.laboratory.allocations import assert_all_written, poisoned
from proof.laboratory.far import assert_reaches_far
from proof.laboratory.guard_pages import assert_in_bounds
from proof.laboratory.races import assert_order_free, assert_race_free


def assert_sound(op: Callable[..., Any], *inputs: Any, gradients: str = "contiguous") -> None:
    """op stays within its tensors, however far apart their samples lie, writes all of its results, and its programs do not
    get in each other's way. inputs and gradients: as for results."""
    both_ways = partial(results, op, gradients=gradients)
    assert_in_bounds(both_ways, *inputs)
    with poisoned(1.0):
        expected = assert_race_free(lambda: both_ways(*inputs))
    assert_order_free(lambda: both_ways(*inputs), expected)
    assert_all_written(both_ways, *inputs, with_ones=expected)
    assert_reaches_far(both_ways, *inputs, near=expected)
