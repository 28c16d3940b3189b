"""proof.aot runs in processes of its own, which must not see TRITON_INTERPRET."""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import triton

from proof.aot import main
from proof.aot_cases import LAUNCHES
from proof.ptx import Access, accesses, local_bytes, tensor_core

ROOT = Path(__file__).parents[2]


def aot(folder, *arguments, program=("-m", "proof.aot")):
    """The reports and the finished process."""
    variables = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    variables.pop("TRITON_INTERPRET", None)
    report = folder / "aot.json"
    process = subprocess.run(
        [sys.executable, *program, "--json", report, *map(str, arguments)],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
    )
    return json.loads(report.read_text())["reports"] if report.exists() else [], process


def assert_clean(reports, process):
    faulty = [(r["cc"], r["kernel"], r["launch"], r["faults"]) for r in reports if r["faults"]]
    assert not faulty
    assert process.returncode == 0, process.stderr


@pytest.mark.slow
def test_kernels_of_training_and_sampling(tmp_path):
    reports, process = aot(tmp_path, "--main", "--cc", 90)
    assert_clean(reports, process)
    assert {r["op"] for r in reports} == {launch.op for launch in LAUNCHES if launch.main} == {launch.op for launch in LAUNCHES}
    assert {r["kernel"] for r in reports if any("16" in counts for counts in r["stores"].values())} >= {
        "philox_kernel",
        "forward_kernel",
        "backward_kernel",
    }


@pytest.mark.slow
def test_every_kernel_on_other_architectures(tmp_path):
    reports, process = aot(tmp_path, "--main", "--one", "--cc", 80, 100, 120)
    assert_clean(reports, process)
    assert {(r["op"], r["cc"]) for r in reports} == {
        (launch.op, cc) for launch in LAUNCHES for cc in (80, 100, 120) if cc in (launch.capabilities or (cc,))
    }


@pytest.mark.exhaustive
@pytest.mark.parametrize("cc", [80, 90, 100, 120])
def test_every_kernel_in_every_configuration(tmp_path, cc):
    reports, process = aot(tmp_path, "--cc", cc)
    assert_clean(reports, process)
    launches = [launch for launch in LAUNCHES if cc in (launch.capabilities or (cc,))]
    assert len(reports) >= len(launches) * 0.8  # some share a configuration


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """Of each capability and toy its report."""
    reports, process = aot(tmp_path_factory.mktemp("toys"), "--cc", 90, 100, program=[ROOT / "tests/helpers/aot_toys.py"])
    assert process.returncode == 1, process.stderr
    return {(r["cc"], r["launch"]): r for r in reports}


@pytest.mark.parametrize("cc", [90, 100])
@pytest.mark.parametrize(
    ("toy", "faults"),
    [
        ("clean", []),
        ("wide", []),
        ("dot", []),
        ("local memory", ["local", "stack", "loads of ?"]),
        ("spills", ["spills", "stack"]),
        ("does not compile", ["does not compile: AttributeError"]),
        ("narrow", ["loads of x_ptr: 4 bytes, 16 are possible"]),
        ("small dot", ["fp16 or bf16 dot without"]),
    ],
)
def test_faults(toys, cc, toy, faults):
    found = toys[cc, toy]["faults"]
    assert len(found) == len(faults)
    assert all(any(text.startswith(fault) for text in found) for fault in faults)


def test_a_stub_is_no_kernel(toys):
    """On 10.0 a kernel that asks for too much tensor memory compiles, to nothing; its launcher asks for the capability."""
    assert not toys[90, "large dot"]["faults"]
    stub = toys[100, "large dot"]
    assert (stub["registers"], stub["spills"], stub["loads"], stub["stores"]) == (4, 0, {}, {})
    assert stub["faults"] == [
        "1024 columns of tensor memory, 512 are there",
        "no loads",
        "no stores",
        "fp16 or bf16 dot without tcgen05.mma",
    ]


def test_specialized_as_the_jit_does(toys):
    """Aligned pointers, a stride of 1 that becomes a constant, a stride that is no multiple of 16."""
    assert toys[90, "wide"]["arguments"] == {"out_ptr": "*fp32:16", "x_ptr": "*fp32:16", "stride": "1", "BLOCK": "1024"}
    assert toys[90, "narrow"]["arguments"] == {"out_ptr": "*fp32:16", "x_ptr": "*fp32:16", "stride": "i32", "BLOCK": "1024"}


def test_matrix_instructions(toys):
    assert toys[90, "dot"]["tensor_core"] == ["wgmma.mma_async"]
    assert toys[100, "dot"]["tensor_core"] == ["tcgen05.mma"]
    assert toys[90, "small dot"]["tensor_core"] == ["mma.sync"]


@pytest.mark.slow
@pytest.mark.parametrize(("tf32", "instructions"), [([], []), (["tf32"], ["mma.sync"])])
def test_products_of_fp32_are_exact_unless_tf32_is_allowed(tmp_path, tf32, instructions):
    """Exact: without a matrix instruction, all of which round fp32 to TF32."""
    reports, _ = aot(tmp_path, "--cc", 80, 90, program=[ROOT / "tests/helpers/aot_fp32_attention.py", *tf32])
    kernels = {(r["cc"], r["kernel"]): r["tensor_core"] for r in reports}
    assert kernels == dict.fromkeys(product((80, 90), ("tiled_kernel", "queries_kernel", "keys_kernel")), instructions)


def test_refuses_to_interpret(monkeypatch):
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    with pytest.raises(SystemExit, match="TRITON_INTERPRET"):
        main(arguments=[])


PTX = """
	.local .align 4 .b8 	__local_depot0[28];
	ld.param.b64 	%rd1, [kernel_param_0];  // [kernel_param_7]
	ld.param.b64 	%rd2, [kernel_param_1];
	ld.param.b32 	%r1, [kernel_param_2];
	mul.wide.s32 	%rd3, %r1, 4;
$L__BB0_1:
	add.s64 	%rd4, %rd1, %rd3;
	@%p1 ld.global.v4.b32 { %r2, %r3, %r4, %r5 }, [ %rd4 + 0 ];
	{ cvt.f32.bf16 %r6, %rs1; }
	selp.b64 	%rd5, %rd1, %rd2, %p2;
	st.global.L1::evict_last.v2.b16 [ %rd5 + 16 ], { %rs1, %rs2 };
	mov.b64 	%rd6, table;
	ld.global.b64 	%rd7, [%rd6];
	ld.global.nc.f32 	%f1, [%rd7];
	atom.global.gpu.acq_rel.add.f32 %f2, [ %rd2 + 0 ], %f1;
	red.global.add.noftz.bf16x2 [ %rd2 ], %r4;
	cp.async.cg.shared.global [ %r9 + 0 ], [ %rd4 + 0 ], 0x10, %r7;
	wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%f1}, %rd1, %rd2, 0, 1, 1;
"""


def test_ptx():
    first, second = frozenset([0]), frozenset([1])
    assert accesses(PTX, {0, 1}) == [
        Access("load", first, 16),
        Access("store", first | second, 4),
        Access("load", frozenset(), 8),
        Access("load", frozenset(), 4),
        Access("atomic", second, 4),
        Access("atomic", second, 4),
        Access("load", first, 16),
    ]
    assert local_bytes(PTX) == 28
    assert tensor_core(PTX) == ["wgmma.mma_async"]
