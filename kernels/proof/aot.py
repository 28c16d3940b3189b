"""Every kernel in every configuration that its launcher can pick, compiled ahead of time: no GPU is needed.

    python kernels/proof aot [--cc 80 90 100 120] [--op NAME] [--main] [--one] [--json FILE]

It exits with 1 where something is wrong with a kernel, as `faults` lists it.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import multiprocessing
import os
import pkgutil
import re
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import triton
from triton.runtime import driver

from proof.aot_cases import LAUNCHES, Launch
from proof.ptx import accesses, local_bytes, tensor_core
from proof.specialize import Configuration, Target, captured

# Shared memory that one block may ask for: CUDA C++ programming guide, technical specifications per compute capability.
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
TENSOR_MEMORY = 512  # columns; a kernel that asks for more compiles to an empty stub

Widths = dict[str, dict[int, int]]  # of each argument, how many accesses of how many bytes


@dataclass(frozen=True)
class Report:
    cc: int
    op: str
    launch: str
    kernel: str
    arguments: dict[str, str]  # types, and the values of constants
    faults: list[str]
    warps: int = 0
    registers: int = 0
    spills: int = 0  # bytes
    stack: int = 0  # bytes, spills and local arrays together
    local: int = 0  # bytes of local arrays
    shared: int = 0  # bytes
    tensor_memory: int = 0  # columns
    loads: Widths = field(default_factory=dict)  # "?" stands for addresses that come from no argument
    stores: Widths = field(default_factory=dict)
    tensor_core: list[str] = field(default_factory=list)


def compiled(configuration: Configuration) -> Report:
    """Compiles a configuration and looks at what came out."""
    driver.set_active(Target(configuration.cc))
    kernel, record = pkgutil.resolve_name(configuration.kernel), json.loads(configuration.record)
    report = Report(
        cc=configuration.cc,
        op=configuration.op,
        launch=configuration.launch,
        kernel=kernel.__name__,
        arguments=_arguments(record),
        faults=[],
    )
    log = io.StringIO()
    with triton.knobs.nvidia.scope(), contextlib.redirect_stdout(log):
        triton.knobs.nvidia.dump_ptxas_log = True
        try:
            binary = kernel.preload(configuration.record)
        except Exception as error:  # of whatever stage: one kernel that does not compile keeps no other from being looked at
            return dataclasses.replace(report, faults=[f"does not compile: {str(error).strip().splitlines()[-1]}"])

    ptx, metadata = binary.asm["ptx"], binary.metadata
    parameters = [x for x in _flat(record["signature"]) if x[1] != "constexpr"]
    pointers = {i for i, (_, type) in enumerate(parameters) if type.startswith("*")}
    widths: dict[str, Widths] = {"load": {}, "store": {}, "atomic": {}}
    for access in accesses(ptx, pointers):
        name = "|".join(sorted(parameters[i][0] for i in access.arguments)) or "?"
        counts = widths[access.kind].setdefault(name, {})
        counts[access.width] = counts.get(access.width, 0) + 1
    report = dataclasses.replace(
        report,
        warps=metadata.num_warps,
        registers=_number(r"Used (\d+) registers", log),
        spills=_number(r"(\d+) bytes spill stores", log) + _number(r"(\d+) bytes spill loads", log),
        stack=_number(r"(\d+) bytes stack frame", log),
        local=local_bytes(ptx),
        shared=metadata.shared,
        tensor_memory=getattr(metadata, "tmem_size", None) or 0,
        loads=widths["load"],
        stores=widths["store"] | widths["atomic"],
        tensor_core=tensor_core(ptx),
    )
    return dataclasses.replace(report, faults=faults(report, binary.asm["ttir"], configuration.wide))


def faults(report: Report, ttir: str, wide: dict[str, int]) -> list[str]:
    """What is wrong with a compiled kernel: memory that it should not need, work that its source asks for and its PTX has not,
    accesses narrower than its launch says they can be."""
    found = [f"{name} {value} bytes" for name in ("spills", "stack", "local") if (value := getattr(report, name))]
    if report.shared > SHARED[report.cc]:
        found.append(f"{report.shared} bytes of shared memory, {SHARED[report.cc]} are there")
    if report.tensor_memory > TENSOR_MEMORY:
        found.append(f"{report.tensor_memory} columns of tensor memory, {TENSOR_MEMORY} are there")
    if "tt.load" in ttir and not report.loads:
        found.append("no loads")
    if re.search(r"tt\.(store|atomic)", ttir) and not report.stores:
        found.append("no stores")
    if re.search(r"tt\.dot .*: tensor<[\dx]+x(f16|bf16)>", ttir):
        expected = {90: ["wgmma.mma_async"], 100: ["tcgen05.mma"]}.get(report.cc, ["mma.sync"])
        if report.tensor_core != expected:
            found.append(f"fp16 or bf16 dot without {expected[0]}")
    if wide:
        wide = {"?": min(wide.values())} | wide
    pointers = {name for name, type in report.arguments.items() if type.startswith("*")}
    for name, width in wide.items():
        accessed = [
            (kind, w)
            for kind in ("loads", "stores")
            for of, widths in getattr(report, kind).items()
            if name in of.split("|")
            for w in widths
        ]
        found += [f"{kind} of {name}: {w} bytes, {width} are possible" for kind, w in accessed if w < width]
        if name in pointers and not accessed:
            found.append(f"no access to {name}")
    return found


def compile_all(configurations: list[Configuration]) -> list[Report]:
    """In as many processes as there are processors; nothing stays in Triton's cache."""
    with tempfile.TemporaryDirectory() as folder, triton.knobs.cache.scope():
        triton.knobs.cache.dir = folder
        workers = len(os.sched_getaffinity(0))
        with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
            return list(pool.map(compiled, configurations))


def table(reports: list[Report]) -> Iterator[str]:
    for cc in sorted({report.cc for report in reports}):
        yield f"compute capability {cc // 10}.{cc % 10}, triton {triton.__version__}; widths in bytes x accesses"
        yield f"  {'kernel, launch':64} warps  regs spill stack local shared  tmem  loads; stores; tensor core"
        for r in (report for report in reports if report.cc == cc):
            memory = f"{r.spills:5} {r.stack:5} {r.local:5} {r.shared:6} {r.tensor_memory:5}"
            does = "; ".join((_widths(r.loads), _widths(r.stores), ", ".join(r.tensor_core) or "-"))
            yield f"  {f'{r.op}.{r.kernel}, {r.launch}':64} {r.warps:5} {r.registers:5} {memory}  {does}"
            yield from (f"    FAULT {fault}" for fault in r.faults)


def _flat(signature: dict) -> Iterator[tuple[str, str]]:
    """Names and types, those of a tuple's elements one by one."""
    for name, type in signature.items():
        if isinstance(type, list):
            yield from _flat({f"{name}[{i}]": x for i, x in enumerate(type)})
        else:
            yield name, type


def _arguments(record: dict) -> dict[str, str]:
    """Types of the arguments with what is known of their divisibility, values of the constants."""
    constants, attributes = (
        dict(zip(map(tuple, record[f"{name}_keys"]), record[f"{name}_vals"], strict=True)) for name in ("constant", "attrs")
    )
    paths = [
        (i, *path)
        for i, type in enumerate(record["signature"].values())
        for path in ([(k,) for k in range(len(type))] if isinstance(type, list) else [()])
    ]
    return {
        name: str(constants[path]) if type == "constexpr" else f"{type}{':16' if attributes.get(path) else ''}"
        for (name, type), path in zip(_flat(record["signature"]), paths, strict=True)
    }


def _number(pattern: str, log: io.StringIO) -> int:
    found = re.search(pattern, log.getvalue())
    if found is None:
        raise RuntimeError(f"ptxas did not say {pattern!r}, but {log.getvalue()!r}")
    return int(found[1])


def _widths(widths: Widths) -> str:
    return " ".join(f"{name} {'+'.join(f'{w}x{n}' for w, n in counts.items())}" for name, counts in widths.items()) or "-"


def main(launches: list[Launch] = LAUNCHES, arguments: list[str] | None = None) -> int:
    if triton.knobs.runtime.interpret:
        sys.exit("proof.aot compiles, and TRITON_INTERPRET is set: unset it")
    parser = argparse.ArgumentParser(prog="python kernels/proof aot", description=__doc__.partition("\n")[0])
    parser.add_argument("--cc", type=int, nargs="+", choices=SHARED, default=list(SHARED), help="compute capabilities")
    parser.add_argument("--op", choices=sorted({launch.op for launch in launches}), help="only this one")
    parser.add_argument("--main", action="store_true", help="only what training and sampling do")
    parser.add_argument("--one", action="store_true", help="only the first configuration of each kernel")
    parser.add_argument("--json", type=Path, help="write the reports into this file")
    options = parser.parse_args(arguments)

    chosen = [x for x in launches if options.op in (None, x.op) and (x.main or not options.main)]
    configurations = [configuration for cc in options.cc for configuration in captured(chosen, cc)]
    if options.one:
        configurations = list({(x.kernel, x.cc): x for x in reversed(configurations)}.values())[::-1]
    reports = compile_all(configurations)
    print(*table(reports), sep="\n")
    if options.json:
        content = {"triton": triton.__version__, "reports": [dataclasses.asdict(report) for report in reports]}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    faulty = sum(bool(report.faults) for report in reports)
    print(f"{len(reports)} kernels compiled, {faulty} with faults")
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
