"""fastgen's operations, one file each: formula, public function, reference in plain PyTorch.

They import torch and nothing of fastgen. Their public home is fastgen.functional.
"""
