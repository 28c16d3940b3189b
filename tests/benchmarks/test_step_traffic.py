"""Operations and bytes of whole training steps, counted on a small network."""

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("tyro")  # of training

from benchmarks.studies import model_traffic
from benchmarks.studies.step_traffic import LOSS, NETWORK, OPTIMIZER, PARTS, PRODUCTS, STEPS, rows, table
from fastgen_kernels.dispatch import on_fake_tensors
from tests.helpers import tiny_diffusers


def build():
    return tiny_diffusers.unet(), (torch.randn(2, 1, 8, 8), torch.randint(0, 1000, (2,)))


@pytest.fixture(scope="module")
def counted():
    """Operations and bytes by step and part, and the rows that they come from."""
    found = [row for name in STEPS for row in rows(name, build)]
    assert [(row.step, row.part) for row in found] == [(name, part) for name in STEPS for part in PARTS]
    return {(row.step, row.part): (row.operations, row.bytes) for row in found}, found


@pytest.fixture(scope="module")
def parameters():
    return list(build()[0].parameters())


@pytest.mark.parametrize(("name", "optimized"), [("diffusers", False), ("diffusers, optimize", True)])
def test_the_network_is_what_it_is_alone(name, optimized, counted):
    with on_fake_tensors():
        forward, backward = model_traffic.passes(build, optimized=optimized)
    alone = forward + backward
    outside = alone.operations_outside, alone.bytes_outside
    assert counted[0][name, NETWORK] == outside
    assert counted[0][name, PRODUCTS] == (alone.operations - outside[0], alone.bytes - outside[1])


def test_optimize_leaves_loss_and_optimizer_as_they_are(counted):
    before, after = ({part: counted[0][name, part] for part in PARTS} for name in ("diffusers", "diffusers, optimize"))
    assert after[LOSS] == before[LOSS]
    assert after[OPTIMIZER] == before[OPTIMIZER]
    assert after[PRODUCTS][0] == before[PRODUCTS][0]
    assert after[NETWORK][0] < before[NETWORK][0]
    assert after[NETWORK][1] < before[NETWORK][1]


def test_the_optimizers_by_hand(counted, parameters):
    """Every element is read and written as the algorithms say; what is left are single numbers."""
    elements, few = sum(p.numel() for p in parameters), 40 * len(parameters) + 100
    # norm 1, scaling 2; decay 2, lerp 3, second moment 2 + 3, root 2, division 2, eps 2, step 4; average 3, 2, 3
    theirs = 4 * elements * (1 + 2 + 2 + 3 + 2 + 3 + 2 + 2 + 2 + 4 + 3 + 2 + 3)
    # norm 1; gradient 1, weight 2, moments 4, average 2
    ours = 4 * elements * (1 + 1 + 2 + 4 + 2)
    assert counted[0]["diffusers", OPTIMIZER][1] == pytest.approx(theirs, abs=few)
    assert counted[0]["fastgen", OPTIMIZER] == (3, pytest.approx(ours, abs=few))  # lr is written, copied and read
    assert counted[0]["diffusers", OPTIMIZER][0] > 3 * len(parameters)
    # gradients of 2 bytes, read twice; a copy of 2 bytes is written
    assert counted[0]["fastgen, bf16_weights", OPTIMIZER] == (3, pytest.approx(ours - 2 * elements, abs=few))


def test_fp32_steps_compute_the_same_network(counted):
    optimized, ours = (counted[0][name, NETWORK] for name in ("diffusers, optimize", "fastgen"))
    assert counted[0]["fastgen", PRODUCTS] == counted[0]["diffusers, optimize", PRODUCTS]
    assert ours[1] == pytest.approx(optimized[1], rel=0.01)
    assert abs(ours[0] - optimized[0]) <= 2


def test_bf16_weights_are_not_cast(counted, parameters):
    """Each of them forward, and its gradient backward."""
    autocast, weights = (counted[0][name, NETWORK] for name in ("fastgen, bf16", "fastgen, bf16_weights"))
    norms = sum("norm" in name for name, _ in build()[0].named_parameters())
    assert autocast[0] - weights[0] >= 2 * (len(parameters) - norms)
    assert weights[1] < autocast[1]


def test_the_table_has_the_sums(counted):
    lines = list(table(counted[1]))
    assert len(lines) == 2 + len(STEPS)
    for line, name in zip(lines[2:], STEPS, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        operations = [int(cell.split(", ")[0].replace(",", "")) for cell in cells[1:]]
        assert cells[0] == name
        assert operations == [*(counted[0][name, part][0] for part in PARTS), sum(operations[:-1])]
