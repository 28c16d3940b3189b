"""What the benchmarks compute with, by clocks that the tests turn; a measurement as on a GPU, with the GPU played."""

import json
import multiprocessing
import os
import statistics
from contextlib import contextmanager, nullcontext
from functools import partial

import pytest
import torch

from benchmarks import bench_attention_qkv
from benchmarks.harness import clocks, ops, roof
from benchmarks.harness.apart import apart
from benchmarks.harness.timing import Row, interleaved, readable, rows
from proof.cases import CASES

interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="needs Triton's interpreter, used where there is no GPU")


# --- medians and ratios


def test_variants_are_timed_in_turn_and_warmups_are_not_counted():
    order = []
    stopwatches = {name: lambda name=name: order.append(name) or float(len(order)) for name in "ab"}
    assert interleaved(stopwatches, rounds=2, warmup=1) == {"a": [3.0, 5.0], "b": [4.0, 6.0]}
    assert order == ["a", "b"] * 3


def test_rows_have_the_median_its_spread_and_the_ratio_to_the_peers_asked_for():
    ours, peer = rows({"ours": [1.0, 2.0, 3.0, 4.0, 100.0], "peer": [6.0] * 5}, {"ours": ["peer"]})
    low, _, high = statistics.quantiles([1, 2, 3, 4, 100], n=4)
    assert ours == Row("ours", 3.0, (high - low) / 3.0, {"peer": 2.0})
    assert peer == Row("peer", 6.0, 0.0, {})


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.5, "1.50 s"), (0.0123, "12.3 ms"), (999e-6, "999 us"), (4.5e-6, "4.50 us"), (2.5e-7, "250 ns"), (9.999e-6, "10.0 us")],
)
def test_times_are_written_with_three_figures(seconds, text):
    assert readable(seconds) == text


# --- clocks


def test_the_wall_clock_is_divided_among_the_calls(monkeypatch):
    now = 0.0
    monkeypatch.setattr(clocks.time, "perf_counter", lambda: now)

    def call():
        nonlocal now
        now += 3.0

    assert clocks.wall([call, call])() == 3.0


def who(path):
    with open(path, "a") as file:
        print(os.getpid(), file=file)


def test_what_runs_apart_has_a_process_of_its_own(tmp_path):
    """Which makes it once, runs it each time, and ends."""
    with apart({name: partial(partial, who, tmp_path / name) for name in "ab"}) as stopwatches:
        seconds = interleaved(stopwatches, rounds=2, warmup=1)
    assert all(len(readings) == 2 and min(readings) > 0 for readings in seconds.values())
    processes = [(tmp_path / name).read_text().split() for name in "ab"]
    assert [len(runs) for runs in processes] == [3, 3]
    assert len({*processes[0], *processes[1], str(os.getpid())}) == 3
    assert not multiprocessing.active_children()


def test_an_error_of_a_maker_is_told():
    with pytest.raises(ZeroDivisionError), apart({"a": partial(divmod, 1, 0)}):
        pass


class PlayedGPU:
    """CUDA events and a host that queues work: the GPU starts after its wait, before or after the host has queued all."""

    def __init__(self, monkeypatch, queueing, cycles_per_second=2**31):
        self.host = self.free = 0.0  # when the host is, and from when on the GPU is idle
        self.queueing, self.waits = queueing, []
        gpu = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = gpu.free = max(gpu.free, gpu.host)

            def query(self):
                return gpu.host >= self.at

            def synchronize(self):
                gpu.host = max(gpu.host, self.at)

            def elapsed_time(self, end):
                return 1e3 * (end.at - self.at)

        def sleep(cycles):
            self.waits.append(cycles)
            self.run(cycles / cycles_per_second)

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "_sleep", sleep)
        monkeypatch.setattr(clocks, "_as_large_as_the_cache", lambda: torch.empty(4))

    def run(self, seconds):
        self.free = max(self.free, self.host) + seconds

    def call(self):
        """Queues two kernels of a millisecond each, with the host's work before each."""
        for _ in range(2):
            self.host += self.queueing
            self.run(1e-3)


@pytest.mark.parametrize("queueing", [1e-5, 3e-3])
def test_the_gpu_is_timed_without_the_hosts_queueing(monkeypatch, queueing):
    gpu = PlayedGPU(monkeypatch, queueing)
    assert clocks.cold([gpu.call])() == pytest.approx(2e-3)
    assert gpu.waits == ([2**21] if queueing == 1e-5 else [2**21, 2**23, 2**25])


def test_a_call_that_waits_for_the_gpu_is_refused(monkeypatch):
    gpu = PlayedGPU(monkeypatch, 1e-5)

    def waits():
        gpu.call()
        gpu.host = gpu.free

    with pytest.raises(RuntimeError, match="waits for the GPU"):
        clocks.cold([waits])()


def test_a_graph_holds_every_output_until_all_calls_are_captured(monkeypatch):
    gpu = PlayedGPU(monkeypatch, 1e-5)
    captured = []

    class Graph:
        def replay(self):
            for call in captured:
                call.__self__.run(1e-3)

    @contextmanager
    def capture(graph, stream):
        assert stream == "side stream"
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "side stream")
    alive = set()

    class Output:
        def __init__(self):
            alive.add(id(self))

        def __del__(self):
            alive.discard(id(self))

    class Call:
        def run(self, seconds):
            gpu.run(seconds)

        def __call__(self):
            captured.append(self.run)
            output = Output()
            assert len(alive) == len(captured)
            return output

    assert clocks.graph([Call() for _ in range(4)])() == pytest.approx(1e-3)
    assert len(captured) == 4


def test_launches_are_named_by_tritons_hook():
    from triton import knobs
    from triton.compiler.compiler import LazyDict

    with clocks.launches() as names:
        knobs.runtime.launch_enter_hook(LazyDict({"name": "some_kernel"}))
    knobs.runtime.launch_enter_hook(LazyDict({"name": "too late"}))
    assert names == ["some_kernel"]


# --- roofs


@pytest.mark.parametrize(
    ("read", "written", "expected"),
    [(0, 100, (0, 1)), (64, 2**20, (0, 1)), (2**21 + 32, 2**20, (2, 1)), (3000, 2000, (3, 2)), (2**20, 64, (1, 0))],
)
def test_a_copy_has_the_mix_of_reads_and_writes(read, written, expected):
    assert roof.mix(read, written) == expected


@interpreted
@pytest.mark.parametrize(("read", "written"), [(2 * 40_000, 40_000), (3 * 9_999, 2 * 9_999), (0, 12_345), (50_000, 0)])
def test_the_copy_roof_moves_the_bytes(read, written):
    from proof.interpreter import recorded

    call = roof.copy(read, written, torch.device("cpu"), 1024, 4)
    with recorded() as log:
        call()
    moved = {kind: sum(a.width * len(a.addresses) for a in log if a.kind == kind) for kind in ("load", "store")}
    reads, writes = roof.mix(read, written)
    assert read + written <= moved["load"] + moved["store"] <= read + written + 64 * (reads + writes)
    assert moved["load"] * writes == moved["store"] * reads


@interpreted
def test_the_launch_and_the_integers_write_nothing():
    from proof.interpreter import recorded

    call = roof.philox_words(4096, torch.device("cpu"), 1024, 4)
    with recorded() as log:
        roof.launch()
        call()
    assert log.launches == ["empty_kernel", "philox_words_kernel"]
    assert sum(len(access.addresses) for access in log if access.kind == "store") == 0


# --- an op at a case

CASE = next(case for case in CASES if case.shape == "MLP VAE 128x16 float32")
ATTENTION = next(case for case in CASES if case.shape == "small UNet 2x2x64x64 bfloat16 channels_last")


def test_the_bytes_of_a_case_are_those_of_its_tensors():
    inputs = CASE.inputs(torch.device("cpu"))
    key, kl, activation = 128 * 4 * 8, 128 * 4, 128 * 16 * 4
    assert ops.traffic(CASE, "forward", inputs) == (2 * activation + key, activation + kl)
    assert ops.traffic(CASE, "backward", inputs) == (3 * activation + key + kl, 2 * activation)


def test_the_backward_call_makes_the_gradients_and_nothing_else():
    inputs = CASE.inputs(torch.device("cpu"))
    forwards = []

    def ours(*inputs):
        forwards.append(inputs)
        return CASE.ours(*inputs)

    (call,) = ops.make_calls(ours, [inputs], "backward")
    first, second = call(), call()
    assert len(forwards) == 1
    assert [x.shape for x in first] == [x.shape for x in inputs[:2]]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_compiled_peer_can_be_called_again_and_again(direction):
    inputs = CASE.inputs(torch.device("cpu"))
    (call,) = ops.make_calls(ops.compile_eager(CASE, backend="aot_eager"), [inputs], direction)
    assert [x.shape for x in call()] == [x.shape for x in call()]


def test_absent_peers_say_why():
    def takes_other_shapes(case):
        raise ops.Absent("takes (N, C, H, W) alone")

    def missing(case):
        import a_package_that_does_not_exist  # noqa: F401

    def broken(case):
        def run(*inputs):
            raise RuntimeError("no such kernel\nwith details")

        return run

    peers = {"other": takes_other_shapes, "missing": missing, "broken": broken, "fine": lambda case: case.eager}
    calls, absent = ops.of_peers(peers, CASE, [CASE.inputs(torch.device("cpu"))], "forward")
    assert list(calls) == ["fine"]
    assert absent == {
        "other": "takes (N, C, H, W) alone",
        "missing": "not installed (No module named 'a_package_that_does_not_exist')",
        "broken": "RuntimeError: no such kernel",
    }


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is absent where there is no GPU")
def test_the_peers_of_attention_are_for_a_gpu():
    calls, absent = ops.of_peers(bench_attention_qkv.PEERS, ATTENTION, [ATTENTION.inputs(torch.device("cpu"))], "forward")
    assert (calls, absent) == ({}, dict.fromkeys(("flash", "cuDNN", "memory-efficient", "math", "FlexAttention"), "is for a GPU"))


def test_flex_attention_attends_to_the_same(monkeypatch):
    """Forward: on a CPU it has no backward pass."""
    monkeypatch.setattr(bench_attention_qkv, "for_a_gpu", lambda: None)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    qkv = ATTENTION.inputs(torch.device("cpu"))[0].detach().float()
    (ours,), (theirs,) = ATTENTION.eager(qkv), bench_attention_qkv.flex(ATTENTION)(qkv)
    assert theirs.stride() == ours.stride()
    torch.testing.assert_close(theirs, ours)


@pytest.fixture
def gpu(monkeypatch):
    """The path that measure takes on a GPU, with the wall clock for every clock and the interpreter for the roofs."""
    monkeypatch.setattr(ops, "GPU", True)
    monkeypatch.setattr(ops, "ROUNDS", 2)
    monkeypatch.setattr(ops, "_stream", nullcontext)
    monkeypatch.setattr(ops, "l2_bytes", lambda: CASE.forward)
    monkeypatch.setattr(ops, "compiled", lambda case: case.eager)
    monkeypatch.setattr(ops, "CLOCKS", dict.fromkeys(("cold", "graph", "wall"), clocks.wall))
    monkeypatch.setattr(ops, "kernels_of", lambda call: ["some_kernel"])
    monkeypatch.setattr(roof, "cold", clocks.wall)


@interpreted
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_measurement_has_every_clock_and_every_variant(gpu, direction):
    tables = ops.measure(CASE, direction, {"named": lambda case: case.eager})
    assert [table["clock"] for table in tables] == ["cold", "graph", "wall"]
    for table in tables:
        names = [row["name"] for row in table["rows"]]
        assert names == ["fastgen", "eager", "torch.compile", "named", "copy roof", "launch roof", "RNG roof"]
        assert list(table["rows"][0]["ratios"]) == names[1:]
        assert (table["path"], table["kernels"], table["calls"], table["absent"]) == ("kernel", ["some_kernel"], 2, {})
    json.dumps(tables)


def test_a_silent_fallback_is_not_timed(gpu, monkeypatch):
    monkeypatch.setattr(ops, "kernels_of", lambda call: [])
    with pytest.raises(AssertionError, match="reparameterize_kl launched no Triton kernel"):
        ops.measure(CASE, "forward", {})


def test_what_one_clock_cannot_time_is_absent_there_and_ours_fails(monkeypatch):
    def refuses(calls):
        if calls == ["theirs"]:
            raise RuntimeError("operation not permitted when stream is capturing")
        return lambda: 1.0

    monkeypatch.setitem(ops.CLOCKS, "graph", refuses)
    table = ops.table("graph", {"fastgen": ["ours"], "eager": ["theirs"]}, {})
    assert [row["name"] for row in table["rows"]] == ["fastgen"]
    assert table["absent"] == {"eager": "RuntimeError: operation not permitted when stream is capturing"}
    with pytest.raises(RuntimeError, match="capturing"):
        ops.table("graph", {"fastgen": ["theirs"]}, {})


@pytest.mark.gpu
@pytest.mark.kernels
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_the_clocks_of_a_gpu(monkeypatch, direction):
    monkeypatch.setattr(ops, "ROUNDS", 5)
    tables = ops.measure(CASE, direction, {})
    assert [table["clock"] for table in tables] == ["cold", "graph", "wall"]
    for table in tables:
        assert {"fastgen", "eager", "copy roof", "launch roof", "RNG roof"} <= {row["name"] for row in table["rows"]}
        assert table["kernels"]
        assert all(0 < row["median"] < 1e-2 for row in table["rows"])
