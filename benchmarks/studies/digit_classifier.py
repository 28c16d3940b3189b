"""What the slow tests judge drawn digits with: a small CNN trained on the real ones, and the Fréchet distance in its features."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DigitCNN(nn.Module):
    """uint8 (N, 1, 28, 28) to logits (N, 10); `features` gives the (N, 64) that they are read from."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, 64),
            nn.ReLU(),
        )
        self.head = nn.Linear(64, 10)

    def features(self, images: Tensor) -> Tensor:
        """uint8 (N, 1, 28, 28) to (N, 64), whose distribution the Fréchet distance compares."""
        return self.body(images.float() / 255)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (N, 1, 28, 28) to the logits of the classes, (N, 10)."""
        return self.head(F.dropout(self.features(images), 0.3, self.training))


def train_classifier(data, epochs: int = 15) -> DigitCNN:
    """Trained on a SampleDataset with shifts of up to 2 pixels; the caller checks its held-out accuracy."""
    from fastgen import noise_streams
    from fastgen.data.augment import augment
    from fastgen.functional import noise_key

    torch.manual_seed(0)
    model = DigitCNN()
    steps = epochs * len(data) // 64
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    batches = data.batches(64, seed=1)
    for step in range(steps):
        image, label = next(batches)
        image = augment(image, noise_key(1, noise_streams.AUGMENT, step, 64), shift=2)
        F.cross_entropy(model(image), label).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval()


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|mean_a - mean_b|² + tr(A + B - 2 (A B)^½) between Gaussians fitted to two sets of features (Heusel et al. 2017,
    arXiv:1706.08500, eq. 6). The trace of the root comes from the eigenvalues of A·B, which are real and not negative."""
    x, y = a.double().numpy(), b.double().numpy()
    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = np.sqrt(np.linalg.eigvals(cov_x @ cov_y).real.clip(min=0)).sum()
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cov_x) + np.trace(cov_y) - 2 * root)


def recall(drawn: Tensor, real: Tensor, k: int = 3) -> float:
    """The share of real features that lie no further from some drawn one than its k-th neighbour among the drawn (Kynkäänniemi et
    al. 2019, arXiv:1904.06991, eq. 2): how much of the variety of the real is drawn."""
    radius = torch.cdist(drawn, drawn).kthvalue(k + 1, dim=1).values  # the first is itself
    return (torch.cdist(real, drawn) <= radius).any(1).float().mean().item()


def class_balanced(labels: Tensor, per_class: int, seed: int) -> Tensor:
    """Rows of a random draw of `per_class` samples of every class."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.nonzero(labels == c).flatten() for c in range(10)]
    return torch.cat([r[torch.randperm(len(r), generator=generator)[:per_class]] for r in rows])
