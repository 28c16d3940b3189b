"""The mutants of a Triton source file: each differs from it in one operator, comparison, constant, mask, cast or call.

Kernels and launchers alike, and the constants beside them. Left alone is what no test of the interpreted kernel could see:
annotations, decorators, messages, hints to the compiler, launch parameters such as num_warps.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile

OPERATORS = {  # what it is written as, and what it becomes
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "+"), ast.Div: ("/", "*"), ast.Pow: ("**", "*"),
    ast.FloorDiv: ("//", "%"), ast.Mod: ("%", "//"), ast.LShift: ("<<", ">>"), ast.RShift: (">>", "<<"),
    ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&"), ast.BitXor: ("^", "|"),
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is"), ast.In: ("in", "not in"), ast.NotIn: ("not in", "in"),
}  # fmt: skip
CALLS = {
    "sum": "max", "max": "min", "min": "max", "maximum": "minimum", "minimum": "maximum",
    "exp": "exp2", "log": "log2", "floor": "ceil",
    "atomic_add": "atomic_xchg", "atomic_max": "atomic_min", "atomic_min": "atomic_max",
    "atomic_and": "atomic_or", "atomic_or": "atomic_and", "atomic_xor": "atomic_or",
}  # fmt: skip
DROPPED_CALLS = {"abs", "cast", "clamp", "sqrt", "trans"}  # f(x, ...) -> x
DROPPED_METHODS = {"to", "float", "contiguous"}  # x.f(...) -> x
MASK_POSITION = {"load": 1, "store": 2}
HINTS = {"multiple_of", "max_contiguous", "max_constancy"}  # f(x, promise)
ASSERTIONS = {"assume", "static_assert", "device_assert", "static_print", "device_print", "debug_barrier"}
LAUNCH_PARAMETERS = {"num_warps", "num_stages", "num_ctas", "maxnreg", "loop_unroll_factor"}


@dataclass(frozen=True)
class Mutant:
    line: int
    column: int
    name: str  # "function: source line | before -> after": edits elsewhere in the file do not change it
    source: str  # the whole file


class Text:
    """The source text of nodes, whose columns count bytes."""

    def __init__(self, source: str):
        self.bytes = source.encode()
        self.lines = self.bytes.splitlines(keepends=True)
        self.starts = [sum(map(len, self.lines[:i])) for i in range(len(self.lines))]

    def span(self, node: ast.AST) -> tuple[int, int]:
        return self.starts[node.lineno - 1] + node.col_offset, self.starts[node.end_lineno - 1] + node.end_col_offset

    def __call__(self, node: ast.AST) -> str:
        start, end = self.span(node)
        return self.bytes[start:end].decode()

    def operand(self, node: ast.AST) -> str:
        """In parentheses where it may need them."""
        atom = isinstance(node, ast.Name | ast.Constant | ast.Call | ast.Attribute | ast.Subscript)
        return self(node) if atom else f"({self(node)})"

    def operator_changed(self, node: ast.AST, left: ast.AST, operator: ast.AST, right: ast.AST) -> str:
        """The text of node with another operator between left and right."""
        (start, end), gap_start, gap_end = self.span(node), self.span(left)[1], self.span(right)[0]
        before, after = OPERATORS[type(operator)]
        without_comments = re.sub(rb"#[^\n]*", lambda comment: b" " * len(comment[0]), self.bytes[gap_start:gap_end])
        gap = without_comments.decode().replace(before, after, 1)
        return self.bytes[start:gap_start].decode() + gap + self.bytes[gap_end:end].decode()

    def replaced(self, node: ast.AST, after: str) -> str:
        """The whole source with `after` in the place of node."""
        start, end = self.span(node)
        code = f"({after})" if isinstance(node, ast.expr) else after
        return (self.bytes[:start] + code.encode() + self.bytes[end:]).decode()


def mutants(source: str) -> list[Mutant]:
    """In the order of the source. Of several with one name, the second and later have a number in it."""
    text = Text(source)
    changes = [(*change, function) for function, node in _walk(ast.parse(source), "module") for change in _changes(node, text)]
    found, seen = [], Counter()
    for node, after, function in sorted(changes, key=lambda change: text.span(change[0])[0]):
        line = text.lines[node.lineno - 1]
        code = _one_line(line.decode().split("  # ")[0])
        name = f"{function}: {code} | {_difference(_one_line(text(node)), _one_line(after))}"
        seen[name] += 1
        number = f" #{seen[name]}" if seen[name] > 1 else ""
        column = len(line[: node.col_offset].decode()) + 1
        found.append(Mutant(node.lineno, column, name + number, text.replaced(node, after)))
    return found


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _difference(before: str, after: str, around: int = 24) -> str:
    """ "before -> after" without what is the same far from the change."""
    prefix = _shared(before, after)
    suffix = _shared(before[prefix:][::-1], after[prefix:][::-1])
    start, cut = max(0, prefix - around), max(0, suffix - around)
    shown = (f"{'…' * (start > 0)}{text[start : len(text) - cut]}{'…' * (cut > 0)}" for text in (before, after))
    return " -> ".join(text if len(text) <= 4 * around else f"{text[: 4 * around]}…" for text in shown)


def _shared(a: str, b: str) -> int:
    """Characters that both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _walk(node: ast.AST, function: str) -> Iterator[tuple[str, ast.AST]]:
    """The nodes that may change, each with the function it is in."""
    function = node.name if isinstance(node, ast.FunctionDef) else function
    yield function, node
    for child in _children(node):
        yield from _walk(child, function)


def _children(node: ast.AST) -> Iterable[ast.AST]:
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Raise() | ast.Assert() | ast.JoinedStr():
            return []
        case ast.FunctionDef(args=arguments, body=body):
            return [*arguments.defaults, *filter(None, arguments.kw_defaults), *body]
        case ast.AnnAssign(value=value):
            return filter(None, [value])
        case ast.Assign(targets=[ast.Name(name)]) | ast.keyword(arg=name) if name in LAUNCH_PARAMETERS:
            return []
        case ast.Call() if _called(node) in ASSERTIONS:
            return []
        case ast.Call(args=arguments) if _called(node) in HINTS:
            return arguments[:1]
    return ast.iter_child_nodes(node)


def _changes(node: ast.AST, text: Text) -> Iterator[tuple[ast.AST, str]]:
    """Nodes to replace, this one or a part of it, and the text that each becomes."""
    match node:
        case ast.BinOp(left, operator, right) | ast.AugAssign(left, operator, right) if type(operator) in OPERATORS:
            yield node, text.operator_changed(node, left, operator, right)
            if isinstance(node, ast.BinOp) and isinstance(operator, ast.BitAnd | ast.BitOr):
                yield from ((node, text(side)) for side in (left, right))
        case ast.Compare(left, operators, rights):
            for before, operator, after in zip([left, *rights], operators, rights, strict=False):
                yield node, text.operator_changed(node, before, operator, after)
        case ast.BoolOp(operator, values):
            word, other = ("and", "or") if isinstance(operator, ast.And) else ("or", "and")
            yield node, f" {other} ".join(map(text.operand, values))
            for value in values:
                yield node, f" {word} ".join(text.operand(kept) for kept in values if kept is not value)
        case ast.UnaryOp(ast.USub() | ast.Invert() | ast.Not(), operand):
            yield node, text(operand)
        case ast.If(test) | ast.IfExp(test) | ast.While(test) if isinstance(test, ast.Name | ast.Attribute | ast.Call):
            yield test, f"not {text(test)}"
        case ast.Constant(bool(value)):
            yield node, str(not value)
        case ast.Constant(int(value)):  # 0 and 1 become each other, as an axis or a dimension they are
            other = 0 if value == 1 else value + 1
            yield node, f"0x{other:X}" if text(node).startswith("0x") else str(other)
        case ast.Constant(float(value)):  # a hundredth is noticed in a scale and in a polynomial's small coefficients alike
            yield node, repr(value * 1.01) if value else "1.0"
        case ast.Expr(ast.Call() as call) if _called(call) not in ASSERTIONS:
            yield node, "pass"
        case ast.Call():
            yield from ((node, after) for after in _changed_calls(node, text))


def _changed_calls(node: ast.Call, text: Text) -> Iterator[str]:
    name, function, everything = _called(node), text(node.func), [*node.args, *node.keywords]
    if name in CALLS:
        yield function.removesuffix(name) + CALLS[name] + text(node).removeprefix(function)
    if name in DROPPED_CALLS and node.args:
        yield text(node.args[0])
    if name in DROPPED_METHODS and isinstance(node.func, ast.Attribute):
        yield text(node.func.value)
    if name == "cdiv":
        yield " // ".join(map(text.operand, node.args))
    if function == "float":  # of "inf"
        yield "0.0"
    if name == "where":
        yield f"{function}({', '.join(map(text, (node.args[0], node.args[2], node.args[1])))})"
    if name in MASK_POSITION:
        kept = [*node.args[: MASK_POSITION[name]], *(x for x in node.keywords if x.arg not in ("mask", "other"))]
        if len(kept) < len(everything):
            yield f"{function}({', '.join(map(text, kept))})"


def _called(node: ast.Call) -> str:
    """load for tl.load."""
    return getattr(node.func, "attr", getattr(node.func, "id", ""))
