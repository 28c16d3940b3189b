"""A norm and the activation of its output, where a module's own forward calls one after the other.

The forward is compiled once more from its source, in which each such pair of calls,

    x = self.norm(x)            x = activated(self.act, self.norm, x)
    x = self.act(x)       →

is one call of `norms.activated`, which decides each time whether they may be one op; so is, by `norms.activated_modulated`, what
is scaled and shifted in between:

    x = self.norm(x)
    if embedding is not None:
        scale, shift = embedding
        x = x * (scale + 1) + shift
    x = self.act(x)

All else in the forward, and the norm and the activation themselves, which others may share or call, stay as they are.
"""

import ast
import inspect
import linecache
import textwrap
from collections.abc import Callable
from functools import cache, wraps
from types import CellType, CodeType, FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fastgen.dropin.norms import SILU, activated, activated_modulated, is_group_norm
from fastgen.dropin.swap import Swapped

Pairs = frozenset[tuple[str, str]]  # of an activation and a norm, as the source names them
_HELPERS: dict[int, Any] = {
    1: activated,
    3: activated_modulated,
}  # by how many arguments they have besides the activation and the norm


class Paired(Swapped, nn.Module):
    """A mixin for modules whose forward was compiled again. The class has the former one's __module__ too, from which diffusers'
    pipelines learn what library a model is of."""

    pairs: Pairs
    stands_for = ()  # its forward asks by itself

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _rebuild, (self.former, self.pairs), self.__getstate__()


def pairs_of(module: nn.Module) -> tuple[Pairs, set[str]]:
    """The pairs in the module's forward that are a group norm and SiLU, and why others are not. Functions that compute SiLU are
    added to `SILU`."""
    cls: Any = type(module)
    function = cls.forward
    found = {(act, norm) for act, norm in _candidates(function) if _is_silu(_named(act, function, module))}
    norms = {norm: _named(norm, function, module) for _, norm in found}
    pairs = frozenset((act, norm) for act, norm in found if is_group_norm(norms[norm]))
    others = {
        f"its {name.removeprefix('self.')}, before SiLU, is {type(norm).__name__}"
        for name, norm in norms.items()
        if isinstance(norm, nn.Module) and not isinstance(norm, nn.GroupNorm) and "Norm" in type(norm).__name__
    }
    if pairs and not _rewritten(function, pairs):
        return frozenset(), {"its forward's source is not at hand"}
    return pairs, others


def swap_forward(module: nn.Module, pairs: Pairs) -> None:
    """Gives the module a class whose forward calls each of the pairs as one."""
    cls: Any = type(module)
    module.__class__ = _joined(cls, cls.forward, pairs)


@cache
def _joined(former: Any, original: Any, pairs: Pairs) -> Any:
    """The former class itself where its source is not what it was when the module was pickled."""
    rewritten = _rewritten(original, pairs)
    if rewritten is None:
        return former

    @wraps(rewritten)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        """As compiled again, unless the class was given another forward since."""
        return (rewritten if former.forward is original else former.forward)(self, *args, **kwargs)

    for act, _ in pairs:  # after unpickling, its functions are to be found anew
        _is_silu(_named(act, original, None))
    names = {"mixin": Paired, "former": former, "pairs": pairs, "forward": forward, "__doc__": former.__doc__}
    return type(former.__name__, (Paired, former), {**names, "__module__": former.__module__})


def _rebuild(former: Any, pairs: Pairs) -> Any:
    cls = _joined(former, former.forward, pairs)
    return cls.__new__(cls)


def _is_silu(activation: Any) -> bool:
    """nn.SiLU, F.silu, or a function x * sigmoid(x), by what it computes."""
    if isinstance(activation, FunctionType) and set(activation.__code__.co_names) <= {"torch", "th", "F", "nn", "sigmoid"}:
        x = torch.linspace(-30, 30, 61, dtype=torch.float64, device="cpu")
        try:
            if torch.allclose(activation(x), F.silu(x), 1e-12, 1e-12):
                SILU.add(activation)
        except Exception:  # it wants other arguments, or names that are not there
            return False
    return type(activation) is nn.SiLU or (inspect.isroutine(activation) and activation in SILU)


def _named(path: str, function: Any, module: nn.Module | None) -> Any:
    """What an expression as "self.norms[0]" or "F.silu" stands for in the function; None where that cannot be said."""
    inner: Any = inspect.unwrap(function)
    code = inner.__code__
    own, *local = code.co_varnames
    root = path.partition(".")[0].partition("[")[0]
    if root in (*local, *code.co_cellvars, *code.co_freevars) or (root == own and not code.co_argcount):
        return None
    names = {**inner.__globals__, own: module}
    try:
        return eval(path, names)
    except Exception:  # the attribute is missing, or of another kind
        return None


@cache
def _candidates(function: Any) -> Pairs:
    """What the function calls one on the result of the other."""
    found: set[tuple[str, str]] = set()
    definition = _definition(function)
    if definition is not None:
        _Fuse(lambda act, norm: _noted(found, act, norm)).visit(definition)
    return frozenset(found)


def _noted(found: set[tuple[str, str]], act: str, norm: str) -> bool:
    """Adds a pair to those found, which is not to be fused."""
    found.add((act, norm))
    return False


@cache
def _rewritten(function: Any, pairs: Pairs) -> Any:
    """The function with the pairs as one call each; None where its source is not at hand, or is not what the function runs."""
    definition = _definition(function)
    inner: Any = inspect.unwrap(function)
    if definition is None or not _is_current(inner.__code__):
        return None
    decorators, definition.decorator_list = definition.decorator_list, []
    _Fuse(lambda *pair: pair in pairs).visit(definition)
    code = _code(definition, inner)
    cells = dict(zip(inner.__code__.co_freevars, inner.__closure__ or (), strict=True))
    cells |= {_name(helper): CellType(helper) for helper in _HELPERS.values()}
    closure = tuple(cells[name] for name in code.co_freevars)
    made: Any = FunctionType(code, inner.__globals__, inner.__name__, inner.__defaults__, closure)
    made.__kwdefaults__, made.__doc__, made.__qualname__ = inner.__kwdefaults__, inner.__doc__, inner.__qualname__
    made.__annotations__ = inner.__annotations__
    try:
        for decorator in reversed(decorators):
            made = eval(compile(ast.Expression(decorator), inner.__code__.co_filename, "eval"), inner.__globals__)(made)
    except NameError:  # it is defined in a function or a class
        return None
    return made


def _definition(function: Any) -> ast.FunctionDef | None:
    """The function's source; None where it is not at hand."""
    inner = inspect.unwrap(function)
    if not isinstance(inner, FunctionType):
        return None
    try:
        parsed: Any = ast.parse("if 1:\n" + textwrap.indent(inspect.getsource(inner), " ")).body[0]
        [parsed] = parsed.body
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    if not isinstance(parsed, ast.FunctionDef):
        return None
    ast.increment_lineno(parsed, inner.__code__.co_firstlineno - 2)
    return parsed


def _is_current(code: CodeType) -> bool:
    """Whether the code is what its file, as it is now, is compiled to."""
    return any(
        (made.co_qualname, made.co_firstlineno) == (code.co_qualname, code.co_firstlineno)
        and (made.co_code, made.co_names, _numbers(made)) == (code.co_code, code.co_names, _numbers(code))
        for made in _codes(code.co_filename)
    )


def _numbers(code: CodeType) -> list[str]:
    return [repr(x) for x in code.co_consts if not isinstance(x, str | CodeType)]


@cache
def _codes(filename: str) -> list[CodeType]:
    """Of all functions in a file."""
    found = [compile("".join(linecache.getlines(filename)), filename, "exec", dont_inherit=True)]
    for code in found:  # grows as it goes
        found += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return found


def _code(definition: ast.FunctionDef, function: FunctionType) -> CodeType:
    """The definition compiled, with the function's free variables and those of the helpers. Annotations and defaults are taken
    from the function, not evaluated again."""
    outer = ast.parse(f"def outer({', '.join((*map(_name, _HELPERS.values()), *function.__code__.co_freevars))}): pass")
    outer.body[0].body = [definition]  # type: ignore[attr-defined]
    for each in (*definition.args.posonlyargs, *definition.args.args, *definition.args.kwonlyargs):
        each.annotation = None
    for other in (definition.args.vararg, definition.args.kwarg):
        if other is not None:
            other.annotation = None
    definition.returns = None
    definition.args.defaults, definition.args.kw_defaults = [], [None for _ in definition.args.kwonlyargs]
    compiled = compile(ast.fix_missing_locations(outer), function.__code__.co_filename, "exec")
    for _ in range(2):
        compiled = next(constant for constant in compiled.co_consts if isinstance(constant, CodeType))
    return compiled


class _Fuse(ast.NodeTransformer):
    """Makes one call of the pairs that `wanted(activation, norm)` says yes to."""

    def __init__(self, wanted: Callable[[str, str], bool]) -> None:
        self.wanted = wanted

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        outer = _applied(node)
        return (outer and self._fused(node, outer[0], outer[1])) or node

    def generic_visit(self, node: ast.AST) -> ast.AST:
        for name in ("body", "orelse", "finalbody"):
            if isinstance(statements := getattr(node, name, None), list):
                setattr(node, name, self._statements(statements))
        return super().generic_visit(node)

    def _statements(self, statements: list[Any]) -> list[Any]:
        done: list[Any] = []
        for statement in statements:
            if not (done and self._absorb(done, statement)):
                done.append(statement)
        return done

    def _absorb(self, before: list[Any], statement: Any) -> bool:
        """Whether `x = act(x)` became part of what comes before: of `x = norm(…)`, or of the branches of an if that end so."""
        act = _assigned(statement)
        if act is None or not isinstance(act[2], ast.Name) or act[2].id != act[0]:
            return False
        last = before[-1]
        if self._between(before, act[0], act[1], statement):
            return True
        if isinstance(last, ast.If):
            branches = [last.body, last.orelse]
            if not any(branch and self._pair(branch[-1], statement) for branch in branches):
                return False
            for branch in branches:
                if not (branch and self._absorb(branch, statement)):
                    branch.append(statement)
            return True
        if pair := self._pair(last, statement):
            before[-1] = pair
            return True
        return False

    def _pair(self, first: Any, second: Any) -> Any:
        """Both as one statement; None where they are no pair."""
        act = _assigned(second)
        if act is None or _target(first) != act[0]:
            return None
        fused = self._fused(second, act[1], first.value)
        return fused and ast.copy_location(ast.Assign(first.targets, fused), second)

    def _between(self, before: list[Any], x: str, act: ast.expr, at: Any) -> bool:
        """Whether x = act(x) became part of x = norm(y) and of what scales and shifts x after it, on a condition or always."""
        if len(before) < 2 or _target(before[-2]) != x:
            return False
        first, last = before[-2:]
        condition = last if isinstance(last, ast.If) and not last.orelse else None
        steps: list[Any] = [last] if condition is None else condition.body
        norm, modulated = _applied(first.value), _modulated(getattr(steps[-1], "value", None))
        if norm is None or modulated is None or {_target(steps[-1]), ast.unparse(modulated[0])} != {x}:
            return False
        others = [*steps[:-1], *modulated[1:], *([] if condition is None else [condition.test])]
        if any(isinstance(node, ast.Name) and node.id == x for other in others for node in ast.walk(other)):
            return False
        plain = self._call(at, act, norm[0], modulated[0])
        if plain is None:
            return False
        first.value, steps[-1].value = norm[1], self._call(at, act, norm[0], *modulated)
        if condition is not None:
            condition.orelse = [ast.copy_location(ast.Assign(first.targets, plain), at)]
        return True

    def _fused(self, at: Any, act: ast.expr, inner: ast.expr) -> ast.expr | None:
        """act(inner) as one call, where inner is norm(x), or that scaled and shifted; None where it is neither."""
        modulated = _modulated(inner)
        norm = _applied(modulated[0] if modulated else inner)
        return norm and self._call(at, act, *norm, *(modulated or ())[1:])

    def _call(self, at: Any, act: ast.expr, norm: ast.expr, *x: ast.expr) -> ast.expr | None:
        """The call of a helper; None where the pair is not wanted."""
        if not _is_path(act) or not _is_path(norm) or not self.wanted(ast.unparse(act), ast.unparse(norm)):
            return None
        return ast.copy_location(ast.Call(ast.Name(_name(_HELPERS[len(x)]), ast.Load()), [act, norm, *x], []), at)


def _name(helper: Any) -> str:
    """A helper's name in the functions that are compiled again."""
    return f"fastgen_{helper.__name__}"


def _modulated(node: Any) -> tuple[ast.expr, ast.expr, ast.expr] | None:
    """(x, scale, shift) of x * (scale + 1) + shift, or with 1 + scale."""
    match node:
        case ast.BinOp(ast.BinOp(x, ast.Mult(), ast.BinOp(ast.Constant(1), ast.Add(), scale)), ast.Add(), shift):
            return x, scale, shift
        case ast.BinOp(ast.BinOp(x, ast.Mult(), ast.BinOp(scale, ast.Add(), ast.Constant(1))), ast.Add(), shift):
            return x, scale, shift
    return None


def _target(statement: Any) -> str | None:
    """x of the statement x = …"""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1 and isinstance(statement.targets[0], ast.Name):
        return statement.targets[0].id
    return None


def _assigned(statement: Any) -> tuple[str, ast.expr, ast.expr] | None:
    """(x, f, y) of the statement x = f(y)."""
    target, applied = _target(statement), _applied(getattr(statement, "value", None))
    return (target, *applied) if target is not None and applied else None


def _applied(node: Any) -> tuple[ast.expr, ast.expr] | None:
    """(f, x) of f(x)."""
    if isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords and not isinstance(node.args[0], ast.Starred):
        return node.func, node.args[0]
    return None


def _is_path(node: ast.expr) -> bool:
    """Whether it is a name, or attributes and constant items of one."""
    while isinstance(node, ast.Attribute) or (isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant)):
        node = node.value
    return isinstance(node, ast.Name)
