"""Which of diffusers' code the blocks stand for: the classes by their name and by the text of what they compute with."""

import hashlib
import inspect
import sys
from functools import cache
from typing import Any, Literal

VERSIONS = "diffusers 0.30 to 0.42"

# SHA-256, its first 16 digits, of each method's source without white space, in the versions in which it changed.
SOURCES = {
    "diffusers.models.resnet.ResnetBlock2D": {"forward": "ff0fd718b8d43c74 35df418ff66ad09d e1834e748c5fb131"},
    "diffusers.models.upsampling.Upsample2D": {
        "forward": "ef8fce165614b77e 6624029ca6ee2d56 b5c30e2108a93cf9 0ec827327503ee9f"
    },
    "diffusers.models.attention_processor.Attention": {"forward": "6e09605944ce7cd9 0fdf7330ab6eee86 b02fc45725a8e8f9"},
    "diffusers.models.attention_processor.AttnProcessor2_0": {"__call__": "eba76a8fb448ca94 01535ae8fd5c44d1"},
    "diffusers.models.attention_processor.FusedAttnProcessor2_0": {"__call__": "03ae21b76a3167bf bca633900c35fca3"},
    "diffusers.models.attention.BasicTransformerBlock": {"forward": "70b13d831a1aaac1 1041ab3406a96968"},
    "diffusers.models.activations.GEGLU": {
        "forward": "94565c7de8698a8a 5a502fc858371b55", "gelu": "3de0ca8a932b280d ad8db4f1db313f3c",
    },
    "diffusers.models.transformers.transformer_2d.Transformer2DModel": {
        "_get_output_for_continuous_inputs": "c0a497a159b1f50f"
    },
}  # fmt: skip


def full_name(cls: type) -> str:
    """With its module's name, as the tables have it."""
    return f"{cls.__module__}.{cls.__qualname__}"


def unknown_source(cls: type) -> str | None:
    """Why a class of the table is not what it was when its block was written; None where it is."""
    for method, digests in SOURCES[full_name(cls)].items():
        if _digest(vars(cls).get(method)) not in digests.split():
            return f"its {method} is not that of {VERSIONS}"
    return None


@cache
def _digest(function: Any) -> str:
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError):
        return ""
    return hashlib.sha256("".join(text.split()).encode()).hexdigest()[:16]


SEPARATE: Literal["separate"] = "separate"
FUSED: Literal["fused"] = "fused"
_KINDS: dict[type, tuple[Any, str]] = {}  # of diffusers' own processors: what they run, and the kind of their projections


def find_processors() -> None:
    """Learns the processors of the diffusers that is imported."""
    module = sys.modules.get("diffusers.models.attention_processor")
    for name, kind in (("AttnProcessor2_0", SEPARATE), ("FusedAttnProcessor2_0", FUSED)):
        cls: Any = getattr(module, name, None)
        if cls is not None and unknown_source(cls) is None:
            _KINDS[cls] = cls.__call__, kind


def processor_kind(processor: Any) -> str | None:
    """SEPARATE or FUSED; None for a processor of another class, or one whose class has since been changed."""
    cls = type(processor)
    if cls not in _KINDS:
        return None
    runs, kind = _KINDS[cls]
    return kind if cls.__call__ is runs else None
