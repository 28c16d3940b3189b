"""Which kernels group_norm takes for a shape, and that their tiles cover it."""

from itertools import product

import pytest
import torch

from fastgen_kernels.group_norm import backward_triton, forward_triton, plan
from fastgen_kernels.group_norm.backward_triton import HELD as BACKWARD
from fastgen_kernels.group_norm.backward_triton import TILE as BACKWARD_TILE
from fastgen_kernels.group_norm.forward_triton import HELD as FORWARD
from fastgen_kernels.group_norm.forward_triton import TILE
from fastgen_kernels.group_norm.plan import Plan, candidates
from fastgen_kernels.group_norm.tiles_triton import wide
from proof.cache import share

PROCESSORS = 132


def plans(shape, groups=32, *, innermost=True, held=FORWARD, tile=TILE):
    return candidates(*shape, groups, innermost=innermost, held=held, tile=tile, processors=PROCESSORS)


@pytest.mark.parametrize(
    ("shape", "forward", "backward"),
    [
        ((128, 128, 32 * 32), "held", "held"),
        ((8, 1280, 16 * 16), "held", "held"),
        ((32, 256, 64 * 64), "streamed", "streamed"),
        ((8, 640, 32 * 32), "split", "split"),
        ((1, 128, 512 * 512), "split", "split"),
    ],
)
def test_of_named_shapes(shape, forward, backward):
    assert plans(shape)[0].algorithm == forward
    assert plans(shape, held=BACKWARD)[0].algorithm == backward


@pytest.mark.kill
@pytest.mark.parametrize(("held", "tile"), [(4096, TILE), (FORWARD, TILE), (BACKWARD, BACKWARD_TILE)])
@pytest.mark.parametrize("innermost", [True, False])
def test_tiles_cover_the_tensor(innermost, held, tile):
    for n, group, groups, s in product((1, 7), (1, 3, 10, 40, 96, 200), (1, 2, 32), (1, 35, 1024, 5000, 20000)):
        c = group * groups
        found = plans((n, c, s), groups, innermost=innermost, held=held, tile=tile)
        assert [p.algorithm for p in found][-1] == "split"
        for p in found:
            assert all(x & (x - 1) == 0 for x in (p.width, p.height, p.warps))
            assert p.channels <= p.width
            assert (p.parts - 1) * p.span < s <= p.parts * p.span
            if p.algorithm == "split":
                assert p.programs == n * -(-c // p.channels) * p.parts
            else:
                assert p.channels % group == 0
                assert p.parts == 1
            if p.algorithm == "held":
                assert p.height >= s
                assert p.height * p.width <= held


@pytest.mark.kill
@pytest.mark.parametrize(
    ("strides", "expected"),  # 3 channels and 7 positions lie beyond the first
    [((715827880, 1), False), ((715827878, 2), True), ((3, 306783377), True)],  # 2^31 - 1, 2^31, 2^31
)
def test_tiles_of_2_31_elements(strides, expected):
    x = torch.empty_strided((2, 4, 8), (1, *strides), device="meta")
    held = Plan("held", 4, 4, 8, 2, 1, 8, 1)
    assert wide(held, None, x) is expected
    assert not wide(held, None)


@pytest.mark.kill
def test_blocks_are_powers_of_2():
    """As Triton wants them; kernels' tests run with smaller ones."""
    blocks = (forward_triton.MERGED, backward_triton.MERGED, backward_triton.ROWS, backward_triton.COLUMNS)
    assert all(x & (x - 1) == 0 for x in blocks)


def test_groups_too_wide_for_a_tile_are_split():
    assert [p.algorithm for p in plans((64, 512, 4096), 1)] == ["split"]


def test_programs_are_enough_for_the_processors():
    """One huge sample is shared by several programs for each processor; of very many small ones each program takes some."""
    assert plans((1, 128, 512 * 512))[0].programs >= 2 * PROCESSORS
    many = plans((10**6, 32, 4), 8)[0]
    assert many.programs == 32 * PROCESSORS


@pytest.mark.parametrize("channels", [320, 640, 960, 1280])
def test_pieces_of_16_bytes(channels):
    """Of a channels_last tensor, whatever the groups: every tile begins at a multiple of 8 channels and ends at one."""
    for s, held in product((64, 256, 1024, 4096), (FORWARD, BACKWARD)):
        assert all(p.channels % 8 == 0 for p in plans((8, channels, s), held=held))


IMAGE, BATCH = ((1, 128, 512 * 512), (32, 256, 4096))


@pytest.mark.parametrize(
    ("plan", "shape", "live"),  # live: elements of a tensor that are at work at once
    [
        (Plan("split", 64, 64, 128, 4096, 512, 512, 8), IMAGE, 128 * 512 * 512),
        (Plan("streamed", 64, 64, 128, 512, 1, 4096, 8), BATCH, 132 * 2 * 64 * 4096),
        (Plan("streamed", 64, 64, 128, 100, 1, 4096, 16), BATCH, 100 * 64 * 4096),
    ],
)
def test_share_of_second_reads_in_the_cache(plan, shape, live):
    x = torch.empty(shape, dtype=torch.bfloat16, device="meta")
    assert share(plan, x, 2) == pytest.approx(50 * 2**20 / (2 * 2 * live))


def test_a_single_pass_reads_nothing_again():
    assert share(Plan("held", 64, 64, 128, 10, 1, 128, 8), torch.empty(BATCH, device="meta"), 2) is None


@pytest.mark.parametrize(
    ("sooner", "innermost", "elements", "warps"),
    [(False, True, 4096, 8), (False, False, 4096, 8), (True, True, 4096, 8), (True, False, 1024, 4)],
)
def test_tiles_are_those_that_do_not_spill(monkeypatch, sooner, innermost, elements, warps):
    """`pytest -m exhaustive` compiles them."""
    monkeypatch.setattr(plan, "spills_sooner", lambda device: sooner)
    x = torch.empty(1, 128, 512 * 512, dtype=torch.bfloat16, device="meta")
    split = plan.plans(x.mT.contiguous().mT if innermost else x, 32, FORWARD, TILE)[-1]
    assert (split.algorithm, split.height * split.width, split.warps) == ("split", elements, warps)
