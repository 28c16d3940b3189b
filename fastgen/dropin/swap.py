"""The exchange of a module's class, on the instance.

The new class derives from a mixin of ours and from the class that the module had, and has that class's name: isinstance, the
parameters, state_dict, hooks and what save_pretrained writes are as they were. Pickles and copies name the two bases, from which
the class is made again.
"""

from functools import cache
from types import MethodType
from typing import Any

from torch import nn
from torch.nn.modules.module import (
    _global_backward_hooks,
    _global_backward_pre_hooks,
    _global_forward_hooks,
    _global_forward_pre_hooks,
)

# What the mixins compute in place of calling these classes, as PyTorch has them.
_FORWARDS: dict[type, Any] = {cls: cls.forward for cls in (nn.GroupNorm, nn.LayerNorm, nn.SiLU, nn.Sequential)}
_BEFORE = "_fastgen_before"  # in old pickles: the attributes that were set, as (former value,), or () where there was none


class Swapped:
    """Base of the mixins. `mixin` is the one that a module's class derives from, `former` the class that the module had, and
    `originals` are the methods of that class, of the names in `stands_for`, in place of which the mixin computes."""

    stands_for: tuple[str, ...] = ("forward",)
    mixin: Any
    former: Any
    originals: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def unknown(cls, former: Any) -> str | None:
        """Why the mixin cannot stand for a class; None where it can."""
        replaced = any(cls.forward is not _FORWARDS[cls] for cls in former.__mro__ if cls in _FORWARDS)
        return "the forward of its class is replaced" if replaced else None

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _rebuild, (self.mixin, self.former), self.__getstate__()  # type: ignore[attr-defined]  # Python 3.11 has it

    def __prepare_scriptable__(self) -> Any:
        """What torch.jit.script compiles in this module's place: one of the former class, of the same parameters and children."""
        twin = self.former.__new__(self.former)
        twin.__dict__.update(self.__dict__, _modules=self.__dict__["_modules"].copy())
        return twin


def _rebuild(mixin: Any, former: Any) -> Any:
    """A new object of the former class itself where that is not what it was when the module was pickled."""
    cls = former if mixin.unknown(former) else _joined(mixin, former, _methods(mixin, former))
    return cls.__new__(cls)


@cache
def _joined(mixin: Any, former: Any, originals: tuple[tuple[str, Any], ...]) -> Any:
    names = {"mixin": mixin, "former": former, "originals": originals}
    return type(former.__name__, (mixin, former), {**names, "__module__": mixin.__module__, "__doc__": former.__doc__})


def _methods(mixin: Any, former: Any) -> tuple[tuple[str, Any], ...]:
    return tuple((name, getattr(former, name)) for name in mixin.stands_for)


def swap(module: nn.Module, mixin: Any) -> None:
    """Gives the module a class that derives from the mixin and its own."""
    former: Any = type(module)
    module.__class__ = _joined(mixin, former, _methods(mixin, former))


def patched(module: Any) -> bool:
    """Whether the class of the module is not what it was, as after Class.forward = other: one of PyTorch that mixins compute in
    place of, or the former class of an exchanged module."""
    cls = type(module)
    if issubclass(cls, Swapped):
        for name, original in cls.originals:  # noqa: SIM110  # any() takes twice as long
            if getattr(cls.former, name) is not original:
                return True
        return False
    return cls in _FORWARDS and cls.forward is not _FORWARDS[cls]


def unswap(module: nn.Module) -> None:
    """Gives the module its former class. What others have since hung on it stays: a class derived from ours, as `parametrize`
    makes it, is derived from the former class; a method of ours that was kept, as accelerate's hooks do, becomes the former
    one."""
    for name, before in module.__dict__.pop(_BEFORE, {}).items():
        delattr(module, name)
        for value in before:
            setattr(module, name, value)
    if not isinstance(module, Swapped):
        return
    cls, former = type(module), module.former
    for name, value in module.__dict__.items():
        if isinstance(value, MethodType) and value.__self__ is module and value.__func__ is getattr(cls, value.__name__, None):
            module.__dict__[name] = MethodType(getattr(former, value.__name__), module)
    module.__class__ = former if "former" in vars(cls) else _derived_from(former, cls)


def _derived_from(former: type, cls: type) -> Any:
    """cls, which derives from an exchanged class, as it would be without the exchange."""
    bases = tuple(former if issubclass(base, Swapped) else base for base in cls.__bases__)
    return type(cls.__name__, bases, {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")})


def overridden(module: nn.Module) -> str | None:
    """What would be lost if a parent read the module's parameters instead of calling it; None where nothing would."""
    if "forward" in module.__dict__:
        return "its forward is replaced on the instance"
    if patched(module):
        return "the forward of its class is replaced"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "it has hooks"
    if _global_forward_hooks or _global_forward_pre_hooks or _global_backward_hooks or _global_backward_pre_hooks:
        return "all modules have hooks"
    return None


def plain(module: Any, *classes: type) -> bool:
    """Whether the module is just of one of the classes, and nothing is hung on it."""
    return type(module) in classes and overridden(module) is None


def overrides(cls: type, base: type) -> list[str]:
    """What a subclass computes in another way than its base may: the names that it, or a class between, defines anew."""
    between = cls.__mro__[: cls.__mro__.index(base)]
    return sorted({name for each in between for name in vars(each) if hasattr(base, name)} - _HARMLESS)


_HARMLESS = {
    "__init__", "__module__", "__doc__", "__qualname__", "__annotations__", "__annotate__", "__annotate_func__",
    "__annotations_cache__", "__firstlineno__", "__static_attributes__", "__parameters__", "__orig_bases__", "__dict__",
    "__weakref__", "__abstractmethods__", "_abc_impl", "__repr__", "extra_repr", "__constants__",
}  # fmt: skip
