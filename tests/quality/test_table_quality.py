"""What the preset wine reaches, trained as a user trains it. Its rows are judged beside real ones, and by a classifier that was
trained on these."""

import pytest
import torch

from fastgen import open_dataset

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def table(trained):
    """The run, and in standardised units rows and labels of the training and of the held-out split."""
    run = trained("wine")

    def rows(split):
        data = open_dataset("wine", split=split)
        x, label = data.reader.read(range(len(data)))[:2]
        return run.values.to_network(x)[..., 0].double(), label

    return run, rows("train"), rows("test")


def drawn(run, **options):
    x, labels = run.sample(648, batch_size=648, **options)  # four times the training split
    return run.values.to_network(x)[..., 0].double(), labels


def test_rows_are_of_the_class_asked_for(table):
    linear_model = pytest.importorskip("sklearn.linear_model")
    run, (real, label), (held_out, held_out_label) = table
    judge = linear_model.LogisticRegression(max_iter=2000).fit(real, label)
    assert judge.score(held_out, held_out_label) > 0.9  # a judge that errs would prove nothing
    rows, labels = drawn(run)
    print(f"agreement {judge.score(rows, labels):.3f}")
    assert judge.score(rows, labels) >= 0.95  # 0.987 on three seeds
    assert all(judge.score(rows[labels == k], labels[labels == k]) >= 0.9 for k in range(3))  # 0.965 at least


def test_rows_have_the_means_deviations_and_correlations_of_real_ones(table):
    run, (real, label), _ = table
    rows, _ = drawn(run, label=label.tolist())
    correlations = real.T.corrcoef()
    generator = torch.Generator().manual_seed(0)
    draws = [real[torch.randint(len(real), (len(real),), generator=generator)] for _ in range(100)]
    usual = sum((draw.T.corrcoef() - correlations).abs().max() for draw in draws) / 100  # 0.18
    difference, mean, std = (rows.T.corrcoef() - correlations).abs().max(), rows.mean(0), rows.std(0)
    print(
        f"correlations {difference:.3f}, bootstrap {usual:.3f}, mean {mean.abs().max():.3f}, std {std.min():.2f}-{std.max():.2f}"
    )
    assert difference <= usual  # 0.09 to 0.13 on three seeds
    assert mean.abs().max() <= 0.25  # 0.10 to 0.14
    assert std.min() >= 0.8  # 0.90 to 1.03
    assert std.max() <= 1.15


def test_rows_are_not_those_of_the_training_split(table):
    run, (real, label), (held_out, _) = table
    rows, _ = drawn(run, label=label.tolist())
    nearest, usual = (torch.cdist(x, real).min(1).values.median() for x in (rows, held_out))
    print(f"distance to the nearest training row {nearest:.2f}, of held-out rows {usual:.2f}")
    assert nearest >= 0.8 * usual  # 1.54 to 1.57 beside 1.71
