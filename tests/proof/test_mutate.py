import ast
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import proof.mutate as tool
from proof.mutations import mutants

ROOT = Path(__file__).parents[2]


def changed(code):
    """The mutants of the body of a function, as their bodies."""
    indented = "\n".join(f"    {line}" for line in code.splitlines())
    found = mutants(f"def f():\n{indented}\n")
    return sorted(ast.unparse(ast.parse(mutant.source).body[0].body) for mutant in found)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("a - b + c", ["a + b + c", "a - b - c"]),
        ("a * b * c", ["(a + b) * c", "a * b + c"]),
        (
            "a / (b // c) ** d % e",
            ["a * (b // c) ** d % e", "a / (b % c) ** d % e", "a / ((b // c) * d) % e", "a / (b // c) ** d // e"],
        ),
        ("a << b >> c", ["(a >> b) >> c", "a << b << c"]),
        ("a & b", ["a | b", "a", "b"]),
        ("a | b", ["a & b", "a", "b"]),
        ("a ^ b", ["a | b"]),
        ("a <= b < c", ["a < b < c", "a <= b <= c"]),
        ("a > b", ["a >= b"]),
        ("a >= b", ["a > b"]),
        ("a == b", ["a != b"]),
        ("a is not None", ["a is None"]),
        ("a in b", ["a not in b"]),
        ("a and b", ["a or b", "a", "b"]),
        ("-a", ["a"]),
        ("~a", ["a"]),
        ("not a", ["a"]),
        ("a if b else c", ["a if not b else c"]),
        ("x[0]", ["x[1]"]),
        ("x[1]", ["x[0]"]),
        ("0x7F", ["0x80"]),
        ("2.0", ["2.02"]),
        ("0.0", ["1.0"]),
        ("True", ["False"]),
        ("tl.where(a, b, c)", ["tl.where(a, c, b)"]),
        ("x.to(tl.float32)", ["x"]),
        ("x.contiguous()", ["x"]),
        ("tl.cast(x, tl.float32)", ["x"]),
        ("tl.load(p, mask=m, other=0.0)", ["tl.load(p)", "tl.load(p, mask=m, other=1.0)"]),
        ("tl.load(p, m)", ["tl.load(p)"]),
        ("tl.load(p)", []),
        ("tl.sum(x, 1)", ["tl.max(x, 1)", "tl.sum(x, 0)"]),
        ("tl.sum(x, axis=0)", ["tl.max(x, axis=0)", "tl.sum(x, axis=1)"]),
        ("triton.cdiv(n, m)", ["n // m"]),
        ("float('inf')", ["0.0"]),
        ("tl.multiple_of(a + b, 16)", ["tl.multiple_of(a - b, 16)"]),  # a promise to the compiler is none of a test's
        ("(a  # not the * here\n * b)", ["a + b"]),
    ],
)
def test_expressions(code, expected):
    assert changed(f"x = {code}") == sorted(ast.unparse(ast.parse(f"x = {after}")) for after in expected)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("x += a", ["x -= a"]),
        ("x = -(a\n + b)", ["x = a + b", "x = -(a - b)"]),
        ("tl.store(p, x, mask)", ["pass", "tl.store(p, x)"]),
        ("tl.atomic_add(p, x)", ["pass", "tl.atomic_xchg(p, x)"]),
        ("kernel[n * m,](x, N=a, num_warps=4)", ["pass", "kernel[n + m,](x, N=a, num_warps=4)"]),
        ("if flag:\n    return", ["if not flag:\n    return"]),
        ("if n < m:\n    raise ValueError(f'{n + 1}' + 'x')", ["if n <= m:\n    raise ValueError(f'{n + 1}' + 'x')"]),
        ("x: tl.constexpr = a + b", ["x: tl.constexpr = a - b"]),
    ],
)
def test_statements(code, expected):
    assert changed(code) == sorted(ast.unparse(ast.parse(after)) for after in expected)


def test_left_alone():
    source = '''
"""1 + 1"""
from triton import jit
@triton.jit(do_not_specialize=[0])
def kernel(x: Literal[1], y) -> Literal[2]:
    """1 < 2"""
    tl.assume(x > 0)
    tl.static_assert(y == 2)
    tl.debug_barrier()
    num_warps = 4
'''
    assert mutants(source) == []


def test_constants_of_the_module_and_defaults():
    names = [mutant.name for mutant in mutants("SCALE = tl.constexpr(2)\ndef f(x, n=3): ...\n")]
    assert names == ["module: SCALE = tl.constexpr(2) | 2 -> 3", "f: def f(x, n=3): ... | 3 -> 4"]


def test_names_do_not_depend_on_other_lines():
    source = "def f(a, b):\n    return a + b, a + b  # sums\n"
    names = ["f: return a + b, a + b | a + b -> a - b", "f: return a + b, a + b | a + b -> a - b #2"]
    assert [mutant.name for mutant in mutants(source)] == names
    assert [mutant.name for mutant in mutants(f"# é\nfrom math import pi\n\n\n{source}")] == names


def test_place():
    [mutant] = mutants("def f(a, b):\n    return g('é', a + b)\n")
    assert (mutant.line, mutant.column, mutant.source) == (2, 19, "def f(a, b):\n    return g('é', (a - b))\n")


# Cut into functions so that each shows one thing. Plain Python: the tool need not know the difference.
SAMPLE = """
import os
import time

def clamp(x, low):
    return low if x < low else x

def count(n):
    i = 0
    while i != n:
        i += 1
    return i

def check():
    os.kill(os.getpid(), 28)  # SIGWINCH, which nobody minds; 29 ends the process, also one that was started by nohup

def hold(n):
    held = b"x" * (n - n)
    while len(held) > 2**20:
        time.sleep(0.1)

def unseen():
    return 7
"""
TESTS = """
import pytest
from sample import x_triton

@pytest.mark.kill
def test_x():
    assert [x_triton.clamp(x, 5) for x in (4, 5, 6)] == [5, 5, 6]
    assert x_triton.count(3) == 3
    x_triton.check()
    x_triton.hold(2**28)

def test_slow():
    assert x_triton.unseen() == 7  # without the marker it kills nothing
"""
CONFIGURATION = "[pytest]\npythonpath = kernels\naddopts = --import-mode=importlib\nmarkers = kill\n"


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """write(source, tests, equivalents): a package with one file x_triton.py, in a folder of its own."""

    def write(source=SAMPLE, tests=TESTS, equivalents=None):
        root = tmp_path_factory.mktemp("package")
        (root / "tests").mkdir()
        for name, text in {
            "kernels/sample/__init__.py": "",
            "kernels/sample/x_triton.py": source,
            "tests/test_x.py": tests,
            "kernels/proof/equivalent_mutants/x_triton.txt": equivalents,
            "pytest.ini": CONFIGURATION,
        }.items():
            if text is None:
                continue
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        return root

    return write


def mutate(root, *arguments, memory_limit=None):
    program = ["-m", "proof.mutate"]
    if memory_limit is not None:
        limited = f"proof.forks.MEMORY_LIMIT = {memory_limit}"
        program = ["-c", f"import sys, proof.mutate; {limited}; sys.exit(proof.mutate.main())"]
    return subprocess.run(
        [sys.executable, *program, *arguments],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(ROOT / "kernels")},
        capture_output=True,
        text=True,
        timeout=300,
    )


EQUIVALENTS = """
# The mutants that no test can kill.
clamp: return low if x < low else x | x < low -> x <= low
    At x = low both branches
    are low.
count: i += 1 | i += 1 -> i -= 1
    This one is killed.
gone: return 1 | 1 -> 0
    This one is not there.
"""


@pytest.fixture(scope="module")
def campaign(package):
    root = package(equivalents=EQUIVALENTS)
    process = mutate(root, "sample/x_triton.py", "--json", "outcomes.json", memory_limit=2**28)
    assert process.stderr == ""
    return (
        root,
        process,
        {row["mutant"].partition(" ")[2]: row["outcome"] for row in json.loads((root / "outcomes.json").read_text())},
    )


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("count: i = 0 | 0 -> 1", "survived"),  # it ends at n all the same
        ("clamp: return low if x < low else x | x < low -> x <= low", "survived"),
        ("unseen: return 7 | 7 -> 8", "survived"),
        ("count: while i != n: | i != n -> i == n", "killed by FAILED tests/test_x.py::test_x"),
        ("count: i += 1 | i += 1 -> i -= 1", "killed by the time limit"),
        ("check: os.kill(os.getpid(), 28) | 28 -> 29", f"killed by {signal.Signals(29).name}"),
        ('hold: held = b"x" * (n - n) | n - n -> n + n', "killed by the memory limit"),
    ],
)
def test_outcomes(campaign, name, outcome):
    assert campaign[2][name].startswith(outcome)


def test_report(campaign):
    root, process, outcomes = campaign
    survivors = [name for name, outcome in outcomes.items() if outcome == "survived"]
    lines = process.stdout.splitlines()
    assert process.returncode == 1
    assert (
        f"mutants {len(outcomes)}, killed {len(outcomes) - len(survivors)}, justified 1, survived {len(survivors) - 1}"
        in lines[1]
    )
    assert any(
        line.startswith("survived ") and line.endswith("kernels/sample/x_triton.py:23:12 unseen: return 7 | 7 -> 8")
        for line in lines
    )
    assert not any(line.startswith("survived ") and "x <= low" in line for line in lines)
    assert lines[-2:] == [
        "stale     killed all the same: count: i += 1 | i += 1 -> i -= 1",
        "stale     no such mutant: gone: return 1 | 1 -> 0",
    ]
    assert (root / "kernels/sample/x_triton.py").read_text() == SAMPLE


ADD = "def add(a, b):\n    return a + b\n"
ADD_TESTS = "from sample import x_triton\ndef test(): assert x_triton.add(1, 2) == 3\n"


def test_all_tests_count_where_none_is_marked(package):
    root = package(ADD, ADD_TESTS)
    process = mutate(root, "kernels/sample/x_triton.py")
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.splitlines()[1:] == [
        "kernels/sample/x_triton.py: mutants 1, killed 1, justified 0, survived 0",
        "100.0% killed or justified, 95% required",
    ]


def test_list_and_only(package):
    root = package()
    listed = mutate(root, "sample/x_triton.py", "--list").stdout.splitlines()
    assert listed[0] == "   1 kernels/sample/x_triton.py:6:19 clamp: return low if x < low else x | x < low -> x <= low"
    number = next(line.split()[0] for line in listed if "7 -> 8" in line)
    process = mutate(root, "sample/x_triton.py", "--only", number)
    assert process.returncode == 1
    assert "1 passed" in process.stdout  # what pytest prints
    assert f"survived  {number:>4} kernels/sample/x_triton.py:23:12 unseen: return 7 | 7 -> 8" in process.stdout


def test_sample(package):
    """The same mutants each time."""
    root = package()
    everything, one, other = (
        mutate(root, "sample/x_triton.py", "--list", *sample).stdout.splitlines() for sample in ([], *2 * [["--sample", "5"]])
    )
    assert one == other == [line for line in everything if line in one] != everything[:5]
    assert len(one) == 5


@pytest.mark.parametrize(
    ("arguments", "files", "message"),
    [
        (["sample/y_triton.py"], {}, "file must exist, here or in kernels/, got sample/y_triton.py"),
        (["sample/__init__.py"], {}, "file must be called x_triton.py, got sample/__init__.py"),
        (["sample/x_triton.py", "--only", "2"], {}, "--only must be in 1 to 1, got 2"),
        (["sample/x_triton.py", "--sample", "0"], {}, "--sample must be at least 1, got 0"),
        (["sample/x_triton.py"], {"source": "1 +"}, "invalid syntax"),
        (
            ["sample/x_triton.py"],
            {"tests": None},
            "x_triton.py must have tests in tests/test_x.py or tests/test_x_*.py, found none in",
        ),
        (
            ["sample/x_triton.py"],
            {"tests": "def test(): ..."},
            "the tests must import sample.x_triton, those in test_x.py do not",
        ),
        (
            ["sample/x_triton.py"],
            {"tests": ADD_TESTS.replace("3", "4")},
            "the tests in test_x.py must pass before anything is changed",
        ),
        (
            ["sample/x_triton.py"],
            {"equivalents": "add: a\n"},
            "every mutant must have its reason below it, indented, got none for add: a",
        ),
    ],
)
def test_errors(package, arguments, files, message):
    process = mutate(package(**{"source": ADD, "tests": ADD_TESTS} | files), *arguments)
    assert process.returncode == 2
    assert process.stderr.startswith("mutate: ")
    assert message in process.stderr


KERNEL = """
import torch
import triton
import triton.language as tl

@triton.jit
def add_kernel(x_ptr, y_ptr):
    tl.store(y_ptr, tl.load(x_ptr) + 2.0)

def add(x):
    y = torch.full_like(x, 5)
    add_kernel[(1,)](x, y)
    return y
"""
KERNEL_TESTS = """
import pytest
import torch

@pytest.mark.kill
def test_add():
    from sample import x_triton

    y = x_triton.add(torch.tensor([3.0])).item()
    with open("seen", "a") as seen:
        seen.write(f"{y:.2f}\\n")
    assert y == 5
"""


def test_mutants_are_what_the_interpreter_runs(package):
    root = package(KERNEL, KERNEL_TESTS)
    process = mutate(root, "sample/x_triton.py")
    assert process.stderr == ""
    seen = (root / "seen").read_text().split()
    assert set(seen) == {"5.00", "1.00", "5.02"}


def test_justified_mutants_exist():
    """Code that moves or changes takes its justifications along."""
    package, folder = ROOT / "kernels" / "fastgen_kernels", ROOT / tool.EQUIVALENTS
    for justified in folder.rglob("*.txt"):
        kernels = package / justified.relative_to(folder).with_suffix(".py")
        names = {mutant.name for mutant in mutants(kernels.read_text())}
        assert not set(tool.read_equivalents(justified)) - names, justified.name


def test_files_that_ops_share_have_tests():
    for name in tool.SHARED_BY:
        file = ROOT / "kernels" / "fastgen_kernels" / f"{name}_triton.py"
        assert file.is_file()
        assert len(tool.find_tests(file, ROOT)) >= len(tool.SHARED_BY[name])
