"""One thread for every test: the tensors are small, and sums then come out the same on every machine."""

import torch

torch.set_num_threads(1)
