"""Where attention takes its kernels: the table, who reads it and who writes it."""

import json

import pytest
import torch

from benchmarks.report import attention_table
from benchmarks.report.attention_table import measured, write_measured
from fastgen.functional import attention, attention_qkv
from fastgen_kernels import dispatch
from fastgen_kernels.attention import choice
from fastgen_kernels.attention.choice import by_architecture, kernels_are_faster, listed_as_faster, readable
from fastgen_kernels.attention.table import ESTIMATE, TABLE, Row, merged, read, write
from proof.interpreter import recorded
from proof.laboratory.device import interpreter_only

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
GPU = torch.device("cuda")


ROWS = [Row("9.0", 16, 64, 64, "kernels"), Row("9.0", 16, 64, 256, "SDPA"), Row("8.0", 16, 64, 64, "kernels")]


@pytest.fixture
def on(monkeypatch):
    """on(9, 0): the choice is that of a GPU of that architecture; with `rows` by a table of these, which no campaign changes."""

    def on(*capability, rows=None):
        monkeypatch.setattr(choice, "interpreted", lambda: False)
        monkeypatch.setattr(choice, "capability", lambda device: capability)
        if rows is not None:
            monkeypatch.setattr(choice, "TABLE", by_architecture(rows))

    return on


def estimated(capability, d, keys):
    """Where SDPA's transposes should cost about as much as its products, and tiles of the architecture do not spill."""
    if capability == "9.0":
        return keys <= (1024 if d <= 64 else 256)
    return capability in ("8.0", "12.0") and d <= 64 and keys <= 128


def test_what_was_not_measured_is_the_estimate():
    for row in read():
        if row.source == ESTIMATE:
            assert (row.faster == "kernels") == estimated(row.capability, row.columns, row.keys), row


@pytest.mark.parametrize(("d", "keys"), [(64, 10_000), (128, 4097), (129, 64), (160, 256), (256, 16)])
def test_what_is_larger_than_every_class_is_left_to_sdpa(on, d, keys):
    for capability in ((8, 0), (9, 0), (10, 0), (12, 0)):
        on(*capability)
        assert not kernels_are_faster(d, keys, BF16, GPU)
        assert not kernels_are_faster(d, keys, FP16, GPU)


@pytest.mark.parametrize("dtype", [FP32, FP64])
def test_more_bits_are_left_to_sdpa(on, dtype):
    for capability in ((8, 0), (9, 0), (10, 0), (12, 0)):
        on(*capability)
        assert not any(kernels_are_faster(d, keys, dtype, GPU) for d in (16, 64, 256) for keys in (1, 64, 4096))


@pytest.mark.parametrize("capability", [(8, 6), (8, 9), (9, 1), (10, 0), (13, 0)])
def test_an_architecture_that_is_not_listed_is_left_to_sdpa(on, capability):
    on(*capability, rows=ROWS)
    assert not any(kernels_are_faster(d, keys, BF16, GPU) for d in (16, 64, 128) for keys in (1, 64, 256))
    assert not choice.has_kernels(GPU)


def test_a_call_is_of_the_smallest_class_that_holds_it(on):
    rows = [Row("9.0", 16, 32, 64, "kernels"), Row("9.0", 16, 32, 256, "SDPA"), Row("9.0", 16, 64, 256, "kernels")]
    on(9, 0, rows=rows[::-1])
    expected = {(32, 64): True, (32, 65): False, (32, 256): False, (33, 64): True, (33, 256): True, (33, 257): False}
    for dtype in (BF16, FP16):
        assert {(d, keys): kernels_are_faster(d, keys, dtype, GPU) for d, keys in expected} == expected
    assert choice.has_kernels(GPU)


def test_every_class_between_the_smallest_and_the_largest_is_listed():
    rows = read()
    for capability in {row.capability for row in rows}:
        some = {(row.columns, row.keys) for row in rows if row.capability == capability}
        assert some >= {(d, keys) for d in (32, 40, 64, 80, 128) for keys in (64, 256, 1024, 4096)}


def test_a_row_says_where_it_is_from():
    for row in read():
        assert (row.source == ESTIMATE) == (row.forward is None) == (row.training is None)


@interpreter_only
@pytest.mark.kernels
@pytest.mark.parametrize(
    ("capability", "d", "side", "dtype", "kernels"),
    [
        ((9, 0), 16, 4, BF16, True),
        ((9, 0), 16, 4, FP32, False),
        ((9, 0), 20, 4, BF16, False),  # not 16 bytes at a time
        ((9, 0), 136, 4, BF16, False),
        ((9, 0), 256, 2, BF16, False),
        ((8, 0), 16, 4, BF16, True),
        ((8, 9), 16, 4, BF16, False),
        ((10, 0), 16, 4, BF16, False),
    ],
)
def test_the_path_that_is_taken(on, capability, d, side, dtype, kernels):
    on(*capability, rows=ROWS)
    qkv = torch.randn(1, 3 * 2 * d, side, side, dtype=dtype).to(memory_format=torch.channels_last)
    q, k, v = torch.randn(3, 1, 2, side**2, d, dtype=dtype)
    for call in (lambda: attention_qkv(qkv, 2), lambda: attention(q, k, v)):
        with recorded() as log:
            call()
        assert bool(log.launches) == kernels


@pytest.mark.parametrize(
    ("shape", "strides", "expected"),
    [
        ((2, 2, 49, 40), (49 * 240, 40, 240, 1), True),  # columns side by side
        ((2, 2, 64, 40), (64 * 240, 40 * 64, 1, 64), True),  # positions
        ((2, 2, 49, 40), (49 * 240, 40 * 49, 1, 49), False),
        ((2, 2, 56, 40), (56 * 240, 40 * 56, 1, 56), False),  # 16 bytes, but kernels spill
        ((2, 2, 64, 36), (64 * 216, 36, 216, 1), False),
        ((2, 2, 64, 40), (64 * 480, 80, 480, 2), False),
        ((2, 2, 64, 40), (0, 0, 0, 0), False),
    ],
)
def test_what_is_read_16_bytes_at_a_time(on, shape, strides, expected):
    on(9, 0)
    assert readable(torch.empty_strided(shape, strides, device="meta")) == expected


@pytest.mark.parametrize("dynamic", [False, True])
def test_dynamo_takes_the_table_for_a_constant(monkeypatch, dynamic):
    monkeypatch.setattr(dispatch, "_INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(choice, "TABLE", by_architecture(ROWS))

    @torch.compile(fullgraph=True, dynamic=dynamic, backend="eager")
    def marked(x):
        return x + (1 if kernels_are_faster(x.shape[3], x.shape[2], x.dtype, GPU) else 2)

    for keys, expected in ((64, 1), (2048, 2)):
        assert (marked(torch.zeros(1, 1, keys, 16, dtype=BF16)) == expected).all()


# --- the file


def test_what_is_written_is_read(tmp_path):
    rows = [Row("9.0", 16, 32, 64, "kernels", 2.5, 1.25, "SOME GPU, torch 2.13.0"), Row("10.0", 16, 64, 64, "SDPA")]
    write(rows, tmp_path / "deep" / "table.csv")
    assert read(tmp_path / "deep" / "table.csv") == rows[::-1]  # sorted


def test_the_table_is_as_it_is_written(tmp_path):
    write(read(), tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_bytes() == TABLE.read_bytes()


@pytest.mark.parametrize(
    "line", ["9.0,16,32,x,kernels,,,estimate", "9.0,16,32,64,both,,,estimate", "9.0,16", "9.0,16,32,64,,,a,"]
)
def test_a_row_that_cannot_be_read(tmp_path, line):
    file = tmp_path / "table.csv"
    file.write_text(f"{TABLE.read_text().splitlines()[0]}\n{line}\n")
    with pytest.raises(ValueError, match=r"faster.csv: (expected|faster: expected)"):
        read(file)


# --- what a campaign writes


def tables(shape, forward, backward, clock="graph", path="kernel"):
    """Of forward and backward the seconds of ours, and the peer's time over that."""
    for direction, (seconds, ratio) in {"forward": forward, "backward": backward}.items():
        row = {"median": seconds, "spread": 0.01}
        yield {
            "title": "", "op": "attention_qkv", "shape": shape, "direction": direction, "clock": clock, "path": path,
            "read": 4, "written": 4, "absent": {},
            "rows": [row | {"name": "fastgen", "ratios": {"eager": ratio, "copy roof": 0.5}}, row | {"name": "eager"}],
        }  # fmt: skip


def record(*some):
    return {
        "device": {"kind": "cuda", "name": "SOME GPU", "capability": "9.0"},
        "versions": {"torch": "2.13.0", "triton": "3.7.1"},
        "date": "2000-01-01T00:00:00+00:00",
        "stages": {"attention_qkv": {"tables": [table for tables in some for table in tables]}},
    }


SHAPE = "UNet 128x8x256x64 bfloat16 channels_last"


@pytest.mark.parametrize(
    ("forward", "backward", "faster", "ratios"),
    [
        ((1e-3, 2.0), (3e-3, 1.0), "kernels", (2.0, 1.25)),
        ((1e-3, 2.0), (3e-3, 0.5), "SDPA", (2.0, 0.88)),  # training would be slower
        ((1e-3, 0.9), (3e-3, 2.0), "SDPA", (0.9, 1.72)),  # sampling would be
        ((1e-3, 1.0), (3e-3, 1.0), "kernels", (1.0, 1.0)),
    ],
)
def test_a_class_goes_to_what_is_slower_at_nothing(forward, backward, faster, ratios):
    (row,) = measured(record(tables(SHAPE, forward, backward)))
    assert row == Row("9.0", 16, 64, 256, faster, *ratios, "SOME GPU, torch 2.13.0, triton 3.7.1, 2000-01-01")


def test_the_case_with_the_most_heads_speaks_for_its_class():
    small, large = tables("small UNet 1x2x256x64 bfloat16", (1, 0.5), (1, 0.5)), tables(SHAPE, (1, 2.0), (1, 2.0))
    (row,) = measured(record(large, small))
    assert row.forward == 2.0


def test_what_is_not_measured_is_no_row():
    (forward, _) = tables(SHAPE, (1, 2.0), (1, 2.0))
    other = [
        [forward],  # cut short
        tables(SHAPE, (1, 2.0), (1, 2.0), clock="wall"),
        tables(SHAPE, (1, 2.0), (1, 2.0), path="reference"),
        [table | {"op": "group_norm"} for table in tables(SHAPE, (1, 2.0), (1, 2.0))],
    ]
    assert measured(record(*other)) == []


def test_a_measurement_takes_the_place_of_its_class_alone(tmp_path, monkeypatch):
    file = tmp_path / "table.csv"
    others = [Row("9.0", 16, 64, 64, "kernels"), Row("9.0", 16, 64, 1024, "kernels"), Row("8.0", 16, 64, 256, "SDPA")]
    monkeypatch.setattr(attention_table, "read", lambda: [*others, Row("9.0", 16, 64, 256, "kernels")])
    (wrote,) = write_measured(record(tables(SHAPE, (1, 0.9), (1, 0.9))), file)
    assert wrote == f"wrote {file}: 1 classes measured, kernels faster in 0"
    assert [row for row in read(file) if row.source == ESTIMATE] == sorted(others, key=lambda row: row.at)
    monkeypatch.setattr(choice, "TABLE", by_architecture(read(file)))
    assert [listed_as_faster(64, keys, BF16, (9, 0)) for keys in (64, 65, 256, 257)] == [True, False, False, True]


def test_a_new_architecture_is_added():
    rows = merged(read(), [Row("12.1", 16, 64, 256, "kernels", 1.5, 1.5, "SOME GPU")])
    assert len(rows) == len(read()) + 1


def test_command(tmp_path, capsys):
    file, out = tmp_path / "some-gpu.json", tmp_path / "table.csv"
    file.write_text(json.dumps(record(tables(SHAPE, (1, 2.0), (1, 2.0)))))
    assert attention_table.main([str(file), "--out", str(out)]) == 0
    assert "1 classes measured, kernels faster in 1" in capsys.readouterr().out
    file.write_text(json.dumps(record()))
    assert attention_table.main([str(file), "--out", str(out)]) == 1
    assert "nothing was written" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        attention_table.main([str(tmp_path / "missing.json")])
    assert "is not a file" in capsys.readouterr().err
