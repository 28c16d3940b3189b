import pytest

from benchmarks.studies.model_traffic import rows

pytest.importorskip("diffusers")


@pytest.mark.kernels
@pytest.mark.parametrize("model", ["ddpm-cifar10, batch 128", "SD VAE at 256², batch 4"])
def test_optimize_saves_traffic(model):
    for row in rows(model):
        assert row.after.bytes_outside <= 0.55 * row.before.bytes_outside
        assert row.after.operations < row.before.operations
        before, after = (count.bytes - count.bytes_outside for count in (row.before, row.after))
        assert after == pytest.approx(before, rel=1e-4)  # nothing moved to where it does not count
