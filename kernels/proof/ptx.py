"""What a kernel's PTX does with global memory: which argument each access belongs to, and how many bytes of a lane it moves."""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

_STATEMENT = re.compile(r"([a-z]\w*(?:\.[\w:]+)+)\s+(.*)", re.S)  # opcode and operands, behind a label, guard or brace
_REGISTER = re.compile(r"%\w+")
_PARAMETER = re.compile(r"\[\w+_param_(\d+)")


@dataclass(frozen=True)
class Access:
    kind: Literal["load", "store", "atomic"]
    arguments: frozenset[int]  # the kernel's parameters that the address is made from; more than one where it selects
    width: int  # bytes


def accesses(ptx: str, pointers: set[int]) -> list[Access]:
    """Every access to global memory that the text has; pointers are the positions of the kernel's parameters that are pointers.

    An address is followed back through the registers that it is computed from. One that passed through memory on its way has
    no arguments.
    """
    statements = list(_statements(ptx))
    sources: dict[str, set[str | int]] = defaultdict(set)
    for opcode, operands in statements:
        if opcode.startswith(("st.", "ld.shared", "ld.global", "atom.", "cp.async")):
            continue
        targets, _, rest = operands.partition("}," if operands.startswith("{") else ",")
        parameter = _PARAMETER.search(rest)
        for register in _REGISTER.findall(targets):
            sources[register] |= {int(parameter[1])} if parameter else set(_REGISTER.findall(rest))

    found = []
    for opcode, operands in statements:
        kind = _kind(opcode)
        if kind:
            address = re.findall(r"\[([^]]*)\]", operands)[-1]
            arguments = _reached(_REGISTER.findall(address), sources) & pointers
            found.append(Access(kind, frozenset(arguments), _width(opcode, operands)))
    return found


def local_bytes(ptx: str) -> int:
    """Local memory that the text declares: arrays that are indexed at run time, and the stacks of slow paths."""
    return sum(int(size) for size in re.findall(r"\.local\s+\.align\s+\d+\s+\.b8\s+\w+\[(\d+)\]", ptx))


def tensor_core(ptx: str) -> list[str]:
    """The kinds of matrix instruction in it."""
    return [name for name in ("tcgen05.mma", "wgmma.mma_async", "mma.sync") if re.search(rf"(?<![\w.]){re.escape(name)}", ptx)]


def _statements(ptx: str) -> Iterator[tuple[str, str]]:
    for text in re.sub(r"//.*", "", ptx).split(";"):
        match = _STATEMENT.search(text)
        if match:
            yield match[1], match[2].strip()


def _kind(opcode: str) -> Literal["load", "store", "atomic"] | None:
    if ".global" not in opcode:
        return None
    name = opcode.partition(".")[0]
    return {"ld": "load", "cp": "load", "st": "store", "atom": "atomic", "red": "atomic"}.get(name)


def _width(opcode: str, operands: str) -> int:
    if opcode.startswith("cp.async"):
        return int(operands.split("],")[-1].split(",")[0], 0)
    vector, element = re.search(r"\.v(\d)", opcode), re.search(r"\.[bsuf]\w*?(\d+)(x2)?$", opcode)
    return (int(vector[1]) if vector else 1) * (2 if element[2] else 1) * int(element[1]) // 8


def _reached(registers: list[str], sources: dict[str, set[str | int]]) -> set[int]:
    """The parameters among what the registers are computed from."""
    seen: set[str | int] = set()
    left: list[str | int] = list(registers)
    while left:
        x = left.pop()
        if x not in seen:
            seen.add(x)
            left += sources.get(x, ())
    return {x for x in seen if isinstance(x, int)}
