"""The exchange of a module's class, on the instance.

The new class derives from a mixin of ours and from the class that the module had, and has that class's name: isinstance, the
parameters, state_dict, hooks and what save_pretrained writes are as they were. Pickles and copies name the two bases, from which
the class is made again.
"""

from functools import cache
from typing import Any

from torch import nn

_BEFORE = "_fastgen_before"  # the attributes that were set: (former value,), or () where there was none


class Swapped:
    """Base of the mixins. `mixin` is the one that a module's class derives from, `former` the class that the module had."""

    mixin: type
    former: type

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _rebuild, (self.mixin, self.former), self.__getstate__()  # type: ignore[attr-defined]  # Python 3.11 has it


def _rebuild(mixin: type, former: type) -> Any:
    cls = _joined(mixin, former)
    return cls.__new__(cls)


@cache
def _joined(mixin: Any, former: Any) -> Any:
    names = {"mixin": mixin, "former": former, "__module__": mixin.__module__, "__doc__": former.__doc__}
    return type(former.__name__, (mixin, former), names)


def swap(module: nn.Module, mixin: Any) -> None:
    """Gives the module a class that derives from the mixin and its own."""
    former: Any = type(module)
    module.__class__ = _joined(mixin, former)


def set_attribute(module: nn.Module, name: str, value: Any) -> None:
    """Sets an attribute of the module, to be undone by `unswap`."""
    module.__dict__.setdefault(_BEFORE, {})[name] = (getattr(module, name),) if hasattr(module, name) else ()
    setattr(module, name, value)


def has_set(module: nn.Module, name: str) -> bool:
    """Whether `set_attribute` set it."""
    return name in module.__dict__.get(_BEFORE, {})


def unswap(module: nn.Module) -> None:
    """The module as it was before `swap` and `set_attribute`."""
    for name, before in module.__dict__.pop(_BEFORE, {}).items():
        delattr(module, name)
        for value in before:
            setattr(module, name, value)
    if isinstance(module, Swapped):
        module.__class__ = module.former


def overridden(module: nn.Module) -> str | None:
    """What would be lost if a parent read the module's parameters instead of calling it; None where nothing would."""
    if "forward" in module.__dict__:
        return "its forward is replaced on the instance"
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return "it has hooks" if any(hooks) else None


def plain(module: Any, *classes: type) -> bool:
    """Whether the module is just of one of the classes, and nothing is hung on it."""
    return type(module) in classes and overridden(module) is None
