"""What proves the kernels without a GPU; not part of the wheel."""
