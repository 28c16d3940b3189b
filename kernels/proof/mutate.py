"""Does a test fail for each mutant of a Triton source file? `python kernels/proof mutate fastgen_kernels/x_triton.py`

The mutants (mutations.py) run in the interpreter against the tests test_x.py and test_x_*.py, anywhere below tests/, that carry
the marker `kill`, or all tests there where none does; for a file that ops share, against those of the ops in SHARED_BY. A failing
test, a crash, a lack of memory or of time kills a mutant. What no test can tell from the original is justified in
equivalent_mutants/, in x_triton.txt or op/x_triton.txt: the mutant's name as printed here, and the reason below it, indented.
Exit code 1 below 95% killed or justified, 2 where nothing could be run.
"""

import argparse
import gc
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from proof.forks import MEMORY, NO_TESTS, NOT_IMPORTED, TIME, Suite, run
from proof.mutations import Mutant, mutants

REQUIRED = 0.95
EQUIVALENTS = Path("kernels", "proof", "equivalent_mutants")
KINDS = ("killed", "justified", "survived")
# Files that several ops share: the ops whose tests see every change of them.
SHARED_BY = {
    "arithmetic": ("q_sample", "philox", "layer_norm", "group_norm_precision"),
    "blocks": ("blocks", "philox"),
    "element_losses": ("diffusion_loss",),
    "elements": ("q_sample", "diffusion_loss"),
    "noise": ("philox",),
    "targets": ("q_sample",),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python kernels/proof mutate", description=__doc__.split("\n")[0])
    parser.add_argument("file", help="x_triton.py, from here or from kernels/")
    parser.add_argument("--json", type=Path, metavar="F", help="write every mutant and its outcome")
    parser.add_argument("--list", action="store_true", help="print the mutants and run none")
    parser.add_argument("--only", type=int, metavar="N", help="run mutant N of the list and show what its tests print")
    parser.add_argument("--sample", type=int, metavar="N", help="run N mutants, drawn at random, the same ones each time")
    options = parser.parse_args(arguments)
    # Before torch and triton are imported: the interpreter, on a machine with a GPU too.
    os.environ |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    try:
        file, root = find(options.file)
        source = file.read_text()
        found = dict(enumerate(mutants(source), 1))
        if options.sample is not None:
            if options.sample < 1:
                raise ValueError(f"--sample must be at least 1, got {options.sample}")
            drawn = random.Random(0).sample([*found], min(options.sample, len(found)))
            found = {number: found[number] for number in sorted(drawn)}
        if options.list:
            print("\n".join(f"{number:4} {title(file, mutant)}" for number, mutant in found.items()))
            return 0
        if options.only is not None:
            if options.only not in found:
                raise ValueError(f"--only must be in 1 to {len(found)}, got {options.only}")
            found = {options.only: found[options.only]}
        module = module_name(file)
        justified = read_equivalents(root / EQUIVALENTS / Path(*module.split(".")[1:]).with_suffix(".txt"))
        with tempfile.TemporaryDirectory() as folder:
            suite = Suite(root, module, find_tests(file, root), Path(folder))
            outcomes = run_all(suite, source, found)
            if options.only is not None:
                print((suite.folder / f"{options.only}.out").read_text())
    except (OSError, ValueError, SyntaxError) as error:
        print(f"mutate: {error}", file=sys.stderr)
        return 2
    if options.json:
        rows = [{"mutant": title(file, found[number]), "outcome": outcomes[number]} for number in found]
        options.json.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    return report(file, found, outcomes, justified, stale=options.only is None and options.sample is None)


def find(typed: str) -> tuple[Path, Path]:
    """The file, and the folder above it that holds its tests."""
    file = next((path.resolve() for path in (Path(typed), Path("kernels", typed)) if path.is_file()), None)
    if file is None:
        raise FileNotFoundError(f"file must exist, here or in kernels/, got {typed}")
    if not file.stem.endswith("_triton"):
        raise ValueError(f"file must be called x_triton.py, got {typed}")
    root = next((folder for folder in file.parents if (folder / "tests").is_dir()), None)
    if root is None:
        raise FileNotFoundError(f"file must lie below a folder with tests/, got {typed}")
    return file, root


def module_name(file: Path) -> str:
    source_root = next(folder for folder in file.parents if not (folder / "__init__.py").exists())
    return ".".join(file.relative_to(source_root).with_suffix("").parts)


def find_tests(file: Path, root: Path) -> list[Path]:
    """Those of x_triton.py, or of the ops that share it; else of the folder that it is in: an op may have its kernels in several
    files."""
    op = file.stem.removesuffix("_triton")
    for names in (SHARED_BY.get(op, (op,)), (file.parent.name,)):
        patterns = [pattern for name in names for pattern in (f"tests/**/test_{name}.py", f"tests/**/test_{name}_*.py")]
        if tests := sorted(test for pattern in patterns for test in root.glob(pattern)):
            return tests
    raise FileNotFoundError(f"{file.name} must have tests in tests/test_{op}.py or tests/test_{op}_*.py, found none in {root}")


def read_equivalents(file: Path) -> dict[str, str]:
    """The reason given for each mutant."""
    reasons: dict[str, str] = {}
    name = ""
    for line in file.read_text().splitlines() if file.exists() else []:
        if line.startswith(" ") and name:
            reasons[name] = f"{reasons[name]} {line.strip()}".strip()
        elif line.strip() and not line.startswith("#"):
            name = line.strip()
            reasons[name] = ""
    for name, reason in reasons.items():
        if not reason:
            raise ValueError(f"{file.name}: every mutant must have its reason below it, indented, got none for {name}")
    return reasons


def run_all(suite: Suite, original: str, found: dict[int, Mutant]) -> dict[int, str]:
    """The outcome for each mutant: "survived", or what killed it. A character is printed for each as it ends."""
    selection, limit = run_original(suite, original)
    outcomes = {}
    for number, code in run(suite, {number: mutant.source for number, mutant in found.items()}, selection, limit):
        outcomes[number] = "survived" if code == 0 else f"killed by {_killer(suite.folder / f'{number}.out', code)}"
        print("S" if code == 0 else ".", end="", flush=True)
    print()
    return outcomes


def run_original(suite: Suite, source: str) -> tuple[list[str], float]:
    """The options of pytest that select the tests, and a time limit for each mutant, from two runs in which all must pass."""
    names = ", ".join(test.name for test in suite.tests)
    for selection in (["-m", "kill"], []):
        [(_, code)] = run(suite, {0: source}, selection, limit=600)
        for name in (suite.folder / "imports").read_text().split():
            with suppress(ImportError):  # what a package finds by a path of its own
                importlib.import_module(name)  # for all forks to come
        if code != NO_TESTS:
            break
    if code == NOT_IMPORTED:
        raise ValueError(f"the tests must import {suite.module}, those in {names} do not")
    if code != 0:
        raise ValueError(f"the tests in {names} must pass before anything is changed:\n{(suite.folder / '0.out').read_text()}")
    gc.freeze()  # what was imported is no garbage: no fork need look for it there
    start = time.monotonic()
    list(run(suite, {0: source}, selection, limit=600))
    return selection, 5 + 5 * (time.monotonic() - start)


def _killer(output: Path, code: int) -> str:
    if code in (TIME, MEMORY):
        return "the time limit" if code == TIME else "the memory limit"
    if code < 0:
        return signal.Signals(-code).name
    failed = (line for line in output.read_text(errors="replace").splitlines() if line.startswith(("FAILED", "ERROR")))
    return next(failed, f"exit code {code}")


def report(file: Path, found: dict[int, Mutant], outcomes: dict[int, str], justified: dict[str, str], *, stale: bool) -> int:
    """Print the counts, the survivors and the justifications that no longer hold; 0 where enough mutants died, else 1."""
    kinds = {number: _kind(mutant, outcomes[number], justified) for number, mutant in found.items()}
    count = Counter(kinds.values())
    share = (len(found) - count["survived"]) / max(1, len(found))
    print(f"{os.path.relpath(file)}: mutants {len(found)}, {', '.join(f'{kind} {count[kind]}' for kind in KINDS)}")
    print(f"{share:.1%} killed or justified, {REQUIRED:.0%} required")
    for number, kind in kinds.items():
        if kind == "survived":
            print(f"survived  {number:4} {title(file, found[number])}")
    kind_of = {mutant.name: kinds[number] for number, mutant in found.items()}
    for name in justified if stale else []:
        if kind_of.get(name) != "justified":
            print(f"stale     {'killed all the same' if name in kind_of else 'no such mutant'}: {name}")
    return 0 if share >= REQUIRED else 1


def _kind(mutant: Mutant, outcome: str, justified: dict[str, str]) -> str:
    if outcome != "survived":
        return "killed"
    return "justified" if mutant.name in justified else "survived"


def title(file: Path, mutant: Mutant) -> str:
    return f"{os.path.relpath(file)}:{mutant.line}:{mutant.column} {mutant.name}"


if __name__ == "__main__":
    sys.exit(main())
