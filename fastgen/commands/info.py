"""`fastgen info`: what runs here, and how."""

import importlib.metadata
import inspect
import platform

import tyro


def main(arguments: list[str]) -> None:
    tyro.cli(_info, args=arguments, prog="fastgen info", description="Versions, device, and which path each op takes.")


def _info() -> None:
    import torch

    from fastgen import __version__, functional
    from fastgen.device import computes_bf16, resolve_device

    device = resolve_device("auto")
    ops = [name for name in functional.__all__ if inspect.isfunction(getattr(functional, name))]
    rows = {
        "fastgen": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "autocast": "bf16" if computes_bf16(device) else "none: the device does not multiply bf16 in hardware",
        "ops": f"{', '.join(ops)}: all by their PyTorch reference, as this version has no Triton kernels",
    }
    for name, value in rows.items():
        print(f"{name:10}{value}")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
