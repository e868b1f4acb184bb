"""JITGEN_VERBOSE and records of logging: what is told, in which fields, to whom; whole lines.

Not here: names in profilers and debuggers (`test_debug`, `test_debug_tools`).
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from child import run_child
from disk_cache import SETTLED
from needs import need

import jitgen
from jitgen import records
from jitgen.primitives.nest import run as nest_run

HOST = next((name for name, reason in jitgen.targets().items() if not reason), None)


@pytest.fixture(autouse=True)
def _host() -> None:
    need(None if HOST else "no target runs here", installable=False)


#: Standard error is the output that is read
BEGIN = """
import os, sys
os.dup2(1, 2)
import numpy as np
import jitgen

def ones(*shape, dtype="f"):
    return np.ones(shape, dtype)
"""


def told(text: str, begin: str = BEGIN, **environment: str) -> list[list[str]]:
    """The fields of each line that a program prints for JITGEN_VERBOSE, without the mark."""
    environment = {"JITGEN_DEBUG": "", "JITGEN_CACHE": "0", "OMP_NUM_THREADS": "2", **environment}
    said = run_child(f"{begin}\n{text}", **environment).splitlines()
    mine = [line for line in said if line.startswith("jitgen_verbose,")]
    assert all(re.fullmatch(r"[ -~]+", line) for line in mine), mine
    assert "jitgen_verbose" not in "".join(line for line in said if line not in mine)
    return [line.split(",")[1:] for line in mine]


def of(kind: str, lines: list[list[str]]) -> list[dict[str, str]]:
    """The lines of a kind by the names of their fields."""
    return [dict(zip(records.FIELDS[kind], line[1:], strict=True))
            for line in lines if line[0] == kind]  # fmt: skip


#: All layers and passes: a call, and layer, pass, algorithm and parts of the shape of its lines
FC = "FullyConnected"
CONV = "Convolution"
CALLS: dict[str, tuple[str, list[tuple[str, list[tuple[str, str, str, str]]]]]] = {
    "fully connected": (
        """
        layer = jitgen.FullyConnected(6, 40, 24, activation="relu", dtype="f64")
        x, w, b, dy = (ones(*s, dtype="d") for s in ((6, 40), (24, 40), (24,), (6, 24)))
        """,
        [
            ("p = layer.pack_weights(w)", [
                (FC, "pack_weights", "direct", "for=forward"),
                (FC, "pack_weights", "direct", "for=backward_data")]),
            ("xp = layer.pack_input(x)", [(FC, "pack_input", "direct", "in_features=40")]),
            ("y = layer.forward(x, w, b)", [(FC, "forward", "direct", "batch=6 in_features=40 "
                                             "out_features=24 w=plain")]),
            ("layer.forward(x[:3], p, b)", [(FC, "forward", "direct", "batch=3 in_features=40 "
                                             "out_features=24 w=packed")]),
            ("layer.forward(xp, p, b)", [(FC, "forward", "direct", "w=packed")]),
            ("layer.backward_activation(dy, y)", [(FC, "backward_activation", "direct", "")]),
            ("layer.backward_data(dy, p)", [(FC, "backward_data", "direct", "w=packed")]),
            ("layer.backward_weights(dy, x)", [(FC, "backward_weights", "direct", "")]),
        ],
    ),
    **{
        name: (
            f"""
            layer = jitgen.Convolution(2, 16, 8, 9, 16, 3, padding=1, activation="relu", {how})
            x, w, b, dy = (ones(*s) for s in (layer.x_shape, layer.w_shape, (16,), layer.y_shape))
            """,
            [
                ("p = layer.pack_weights(w)", [
                    (CONV, "pack_weights", name, "for=forward"),
                    (CONV, "pack_weights", name, "for=backward_data")]),
                ("y = layer.forward(x, w, b)", [(CONV, "forward", name, "batch=2 in_channels=16 "
                    "height=8 width=9 out_channels=16 kernel=3x3 padding=1x1")]),
                ("layer.forward(x, p, b)", [(CONV, "forward", name, "w=packed")]),
                ("layer.backward_activation(dy, y)", [(CONV, "backward_activation", "direct", "")]),
                ("layer.backward_data(dy, w)", [(CONV, "backward_data", name, "w=plain")]),
                ("layer.backward_weights(dy, x)", [(CONV, "backward_weights", name, "")]),
            ],
        )
        for name, how in (("direct", "algorithm='direct'"), ("winograd", "algorithm='winograd'"),
                          ("depthwise", "groups=16"))
    },
    "one dimension": (
        """
        layer = jitgen.convolution_1d(2, 4, 20, 8, 3, bias=False)
        x, w = (ones(*s) for s in (layer.x_shape, layer.w_shape))
        """,
        [("layer.forward(x, w)", [(CONV, "forward", "direct", "batch=2 in_channels=4 length=20 "
                                   "out_channels=8 kernel=3 w=plain")])],
    ),
    "pooling": (
        """
        most, mean = (kind(2, 5, 8, 8, 2) for kind in (jitgen.MaxPool, jitgen.AveragePool))
        x, dy = ones(*most.x_shape), ones(*most.y_shape)
        """,
        [
            ("most.forward(x)", [("MaxPool", "forward", "direct", "batch=2 channels=5 height=8 "
                                  "width=8 kernel=2x2")]),
            ("most.backward(dy, x)", [("MaxPool", "backward", "direct", "")]),
            ("mean.forward(x)", [("AveragePool", "forward", "direct", "")]),
            ("mean.backward(dy)", [("AveragePool", "backward", "direct", "")]),
        ],
    ),
    **{
        kind: (
            f"""
            layer = jitgen.{kind}(3, 4, 5, 6, direction="{direction}")
            x, w, r, b = (ones(*layer.shapes[n]) for n in "xwrb")
            """,
            [
                ("p = layer.pack_weights(w, r)", [(kind, "pack_weights", "direct",
                                                   f"direction={direction}")]),
                ("layer.forward(x, p, None, b)", [(kind, "forward", "direct", "batch=3 steps=4 "
                    f"in_features=5 hidden=6 direction={direction} w=packed training=no")]),
                ("y, *_ = layer.forward(x, w, r, b, lengths=[1, 2, 3], training=True)",
                 [(kind, "forward", "direct", "w=plain training=yes lengths=given")]),
                ("layer.backward(np.ones_like(y))", [(kind, "backward", "direct", "")]),
            ],
        )
        for kind, direction in (("Lstm", "bidirectional"), ("Gru", "forward"), ("Rnn", "reverse"))
    },
    "optimizers": (
        "p = [ones(3, 4), ones(5)]\nadam, sgd = jitgen.Adam(p), jitgen.Sgd(p, 0.1)",
        [
            ("adam.step(p)", [("Adam", "step", "direct", "parameters=2 elements=17")]),
            ("sgd.step(p)", [("Sgd", "step", "direct", "parameters=2 elements=17")]),
        ],
    ),
    "a network": (
        "net = jitgen.Mlp(4, (5, 6, 3))\nsgd = jitgen.Sgd(net.parameters, 0.1)",
        [("net.train_step(ones(4, 5), np.zeros(4, int), sgd)", [
            (FC, "forward", "direct", "out_features=6"),
            (FC, "forward", "direct", "in_features=6"),
            (FC, "backward_weights", "direct", "in_features=6"),
            (FC, "backward_data", "direct", ""), (FC, "backward_activation", "direct", ""),
            (FC, "backward_weights", "direct", "out_features=6"),
            ("Sgd", "step", "direct", "parameters=4")])],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_every_pass_of_every_layer_has_a_line(name: str) -> None:
    made, calls = CALLS[name]
    # each call twice: only the first one makes anything
    text = "import time\n" + made.replace("\n            ", "\n").replace("\n        ", "\n")
    for call, _ in calls:
        text += (f"\nfor _ in 1, 2:\n    start = time.perf_counter()\n    {call}\n"
                 "    print('call', time.perf_counter() - start, flush=True)\n")  # fmt: skip
    said = run_child(BEGIN + text, JITGEN_VERBOSE="1", OMP_NUM_THREADS="2", JITGEN_CACHE="0")
    rest = said[said.index("jitgen_verbose,info") :].split("\n", 1)[1]
    *blocks, last = re.split(r"call (.*)\n", rest)
    assert not last
    for i, (call, wanted) in enumerate(calls):
        for turn in (0, 1):
            text, wall = blocks[4 * i + 2 * turn : 4 * i + 2 * turn + 2]
            lines = [line.split(",")[1:] for line in text.splitlines()]
            found = of("exec", lines)
            assert len(found) == len(wanted), (call, text)
            for line, (layer, which, algorithm, shape) in zip(found, wanted, strict=True):
                assert (line["layer"], line["pass"], line["algorithm"]) == (layer, which, algorithm)
                assert line["target"] == jitgen.host().name
                assert line["dtype"] == ("f64" if name == "fully connected" else "f32")
                assert line["threads"] in ("1", "2")
                assert shape in line["shape"] and re.fullmatch(r"(\w+=\w+ ?)+", line["shape"]), line
            assert 0 < sum(float(line["ms"]) for line in found) <= 1e3 * float(wall) + 0.001
            if turn:
                assert len(lines) == len(found), f"made again: {text}"


def test_the_time_is_that_of_the_replay() -> None:
    """Of a large product nearly the whole call; of a bidirectional layer both directions."""
    lines = told("""
import time
layer, x, w = jitgen.FullyConnected(512, 512, 512, bias=False), ones(512, 512), ones(512, 512)
for _ in range(3):
    start = time.perf_counter()
    layer.forward(x, w)
    print(f"jitgen_verbose,wall,{1e3 * (time.perf_counter() - start)}", flush=True)
""", JITGEN_VERBOSE="exec")  # fmt: skip
    times = [float(line[-1]) for line in lines if line[0] in ("exec", "wall")]
    pairs = list(zip(times[::2], times[1::2], strict=True))[1:]  # without what the first one makes
    assert any(0.7 * wall < replay < wall for replay, wall in pairs), pairs


def test_the_stopwatch_sums_up_and_keeps_the_most_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([1.0, 1.5, 10.0, 10.25])
    monkeypatch.setattr(nest_run.time, "perf_counter", lambda: next(ticks))
    watch, seen = nest_run.Stopwatch(), []
    watch.around(lambda *given: seen.append(given), 2)("bases", None)
    watch.around(lambda *given: seen.append(given), 1)("others")
    assert (watch.seconds, watch.threads, seen) == (0.75, 2, [("bases", None), ("others",)])


def test_generated_code_is_told_with_its_size() -> None:
    lines = told("""
kernel = jitgen.brgemm(5, 24, 7, beta=1.0, trans_a=True, epilogue=("bias", "relu"))
print(f"jitgen_verbose,size,{len(kernel.code)}", flush=True)
assert jitgen.brgemm(5, 24, 7, beta=1.0, trans_a=True, epilogue=("bias", "relu")) is kernel
kernel(ones(7, 5), ones(7, 24), ones(5, 24), bias=ones(24))
layer = jitgen.FullyConnected(64, 64, 64, threads=1, bias=False)
stream = layer.stream(packed=False)
stream_calls = sum(len(calls.nest) for calls in stream.parts)
print(f"jitgen_verbose,stream,{len(stream.calls)},{stream_calls},{4 * len(stream.slices[0])}",
      flush=True)
layer.forward(ones(64, 64), ones(64, 64))
""", JITGEN_VERBOSE="1")  # fmt: skip
    made = of("generate", lines)
    (size,) = [line[1] for line in lines if line[0] == "size"]
    assert made[0].pop("ms")
    assert made[0] == {
        "kind": "kernel", "title": "brgemm f32 5x24x7 stride beta=1 trans_a bias relu",
        "source": "new", "target": jitgen.host().name, "kernels": "", "calls": "", "bytes": size,
    }  # fmt: skip
    assert len([line for line in made if line["title"].startswith("brgemm f32 5x24x7")]) == 1
    (stream,) = [line for line in made if line["kind"] == "stream"]
    assert stream["title"] == "FullyConnected forward 64 64 64"
    (wanted,) = [line[1:] for line in lines if line[0] == "stream"]
    assert [stream["kernels"], stream["calls"], stream["bytes"]] == wanted
    (driver,) = [line for line in made if line["kind"] == "driver"]
    assert driver["title"] == "replay FullyConnected forward 64 64 64"
    within = [line for line in made[1:] if line["kind"] in ("kernel", "routine")]
    assert 1 <= len(within) == int(driver["kernels"]), made
    assert int(driver["bytes"]) > sum(int(line["bytes"]) for line in within)
    assert all(float(line["ms"]) > 0 for line in made[1:])
    # calls of kernels are not told
    assert [line["layer"] for line in of("exec", lines)] == ["FullyConnected"]


def test_kernels_from_disk_say_so(tmp_path: Path) -> None:
    text = SETTLED + "jitgen.brgemm(5, 24, 7)"
    how = {"JITGEN_VERBOSE": "generate", "JITGEN_CACHE": str(tmp_path / "kernels")}
    sources = [[line["source"] for line in of("generate", told(text, **how))] for _ in range(2)]
    assert sources == [["new"], ["disk"]]


def test_kernels_of_the_other_assembler_say_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What it emits is not asked here (`test_peachpy`)."""
    monkeypatch.setattr(jitgen.gemm.kernel, "_assemble_elsewhere", lambda kernel: kernel)
    with caplog.at_level(logging.INFO, "jitgen"):
        jitgen.brgemm(5, 24, 7, alpha=0.75, assembler="peachpy", target="avx2")
    assert [vars(record)["source"] for record in caplog.records] == ["peachpy"]
    assert "brgemm f32 5x24x7 stride alpha=0.75,peachpy,avx2," in caplog.text


# ---- the variable --------------------------------------------------------------------------------

CALL = """
layer = jitgen.FullyConnected(4, 8, 8, bias=False)
x, w = ones(4, 8), ones(8, 8)
layer.forward(x, w)
"""


@pytest.mark.parametrize("value", ["", "0", " 0 ", ","])
def test_off_prints_and_installs_nothing(value: str) -> None:
    said = run_child(BEGIN + CALL + """
import logging
logger = logging.getLogger("jitgen")
assert [type(h) for h in logger.handlers] == [logging.NullHandler] and logger.propagate
assert all(not logger.getChild(kind).handlers for kind in ("exec", "generate", "dispatch"))
assert "jitgen.run.verbose" not in sys.modules or os.environ["JITGEN_VERBOSE"]
""", JITGEN_VERBOSE=value)  # fmt: skip
    assert said == ""


def test_off_no_call_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopwatch() -> None:
        raise AssertionError("timed")

    layer = jitgen.FullyConnected(4, 8, 8, bias=False, threads=1)
    x, w = np.ones((4, 8), "f"), np.ones((8, 8), "f")
    monkeypatch.setattr(nest_run, "Stopwatch", stopwatch)
    logger = logging.getLogger("jitgen.exec")
    assert layer.forward(x, w)[0, 0] == 8
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    logger.setLevel(logging.INFO)
    with pytest.raises(AssertionError, match="timed"):
        layer.forward(x, w)


@pytest.mark.parametrize(
    ("value", "kinds"),
    [("1", "exec generate"), ("exec", "exec"), ("generate", "generate"), ("dispatch", "dispatch"),
     ("exec, dispatch", "exec dispatch"), ("1,dispatch", "exec generate dispatch"),
     ("0,exec", "exec")],
)  # fmt: skip
def test_words_choose_what_is_printed(value: str, kinds: str) -> None:
    lines = told(CALL, JITGEN_VERBOSE=value)
    assert {line[0] for line in lines} == {"operation", "info", *kinds.split()}
    heads = [line[1:] for line in lines if line[0] == "operation"]
    wanted = [list(records.FIELDS[kind]) for kind in records.FIELDS if kind in kinds.split()]
    assert heads == wanted and {line[0] for line in lines[: len(heads)]} == {"operation"}
    (info,) = [line[1:] for line in lines if line[0] == "info"]
    assert len(info) == 4 and info[0] == f"jitgen {jitgen.__version__}"
    assert info[1] == jitgen.run.cpu.name().replace(",", ";")
    assert info[2:] == [f"target {jitgen.host().name}", "threads 2"]
    for kind in kinds.split():
        assert of(kind, lines)


def test_dispatch_says_why_not() -> None:
    need(None if jitgen.targets()["avx2"] == "" else "this CPU has no AVX2", installable=False)
    lines = told(CALL, JITGEN_VERBOSE="dispatch", JITGEN_ISA="avx2")
    assert of("dispatch", lines) == [
        {"target": "avx512", "chosen": "no", "reason": "JITGEN_ISA=avx2"},
        {"target": "avx2", "chosen": "yes", "reason": ""},
    ]
    lines = told("""
from jitgen.run import cpu
try:
    jitgen.host()
except RuntimeError:
    print("jitgen_verbose,refused")
""", JITGEN_VERBOSE="dispatch", JITGEN_ISA="sve256")  # fmt: skip
    assert lines[-1] == ["refused"] and of("dispatch", lines)[-1] == {
        "target": "sve256", "chosen": "no", "reason": jitgen.targets()["sve256"].replace(",", ";"),
    }  # fmt: skip
    (info,) = [line for line in lines if line[0] == "info"]
    assert info[3].startswith("target none: no target can run here under JITGEN_ISA=sve256")


@pytest.mark.parametrize(
    ("value", "bad", "kinds"),
    [("2", "2", set()), ("yes", "yes", set()), ("exec,create", "create", {"exec"}),
     ("EXEC, ,1.0", "EXEC, 1.0", set())],
)  # fmt: skip
def test_nonsense_is_warned_of_and_the_rest_holds(value: str, bad: str, kinds: set[str]) -> None:
    text = f"""
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    {BEGIN.replace(chr(10), chr(10) + "    ")}
for each in caught:
    print(each.category.__name__, each.message)
{CALL}"""
    said = run_child(text, JITGEN_VERBOSE=value)
    rule = f"JITGEN_VERBOSE: {bad} is not one of 0, 1, exec, generate, dispatch"
    assert f"RuntimeWarning {rule}\n" in said and said.count("Warning") == 1
    found = {line.split(",")[1] for line in said.splitlines() if line.startswith("jitgen_verbose")}
    assert found == ({*kinds, "operation", "info"} if kinds else set())


def test_a_wrong_isa_is_an_error_where_a_target_is_wanted() -> None:
    lines = told("""
try:
    jitgen.FullyConnected(4, 8, 8)
except ValueError as error:
    print("jitgen_verbose,refused,", "nonsense" in str(error))
""", JITGEN_VERBOSE="1", JITGEN_ISA="nonsense")  # fmt: skip
    assert lines[-1] == ["refused", " True"]
    assert "target none: target='nonsense' is not one of" in ",".join(lines[-2])


@pytest.mark.parametrize("value", ["sys.stderr = None", "sys.stderr = sys.__stderr__ = None"])
def test_without_standard_error_nothing_is_printed(value: str) -> None:
    assert [line[0] for line in told(f"{value}\n{CALL}", JITGEN_VERBOSE="exec")] == [
        "operation", "info",
    ]  # fmt: skip


def test_another_standard_error_gets_the_lines() -> None:
    lines = told(f"""
import contextlib, io
with contextlib.redirect_stderr(io.StringIO()) as kept:
    {CALL.replace(chr(10), chr(10) + "    ")}
text = kept.getvalue()
assert text.startswith("jitgen_verbose,exec,FullyConnected,forward,") and text.count("\\n") == 1
""", JITGEN_VERBOSE="exec")  # fmt: skip
    assert not of("exec", lines)


# ---- logging -------------------------------------------------------------------------------------

#: A handler that keeps records
KEEP = """
import logging
class Keep(logging.Handler):
    def __init__(self):
        super().__init__()
        self.kept = []
    def emit(self, record):
        self.kept.append(record)
keep = Keep()
def names():
    return sorted({record.name for record in keep.kept})
"""
ALL = ["jitgen.exec", "jitgen.generate"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_level_and_a_handler_are_enough(when: str) -> None:
    """Set before jitgen is imported, or in the midst of a program."""
    level = "logging.getLogger('jitgen').setLevel(logging.INFO)\nlogging.root.addHandler(keep)\n"
    first = KEEP + (level if when == "before" else "")
    said = run_child(f"""{first}{BEGIN}{CALL}
if {when == "after"}:
    assert not keep.kept
    {level.replace(chr(10), chr(10) + "    ")}
    jitgen.FullyConnected(4, 8, 9, bias=False).forward(x, ones(9, 8))
assert names() == {ALL}, names()
record = keep.kept[-1]
assert record.levelno == logging.INFO and record.name == "jitgen.exec"
assert (record.layer, vars(record)["pass"], record.algorithm) == (
    "FullyConnected", "forward", "direct")
assert record.target == jitgen.host().name and record.dtype == "f32" and record.threads == 1
assert "batch=4 in_features=8" in record.shape and 0 < record.ms < 1000
assert record.getMessage().startswith("exec,FullyConnected,forward,direct,")
made = [record for record in keep.kept if record.name == "jitgen.generate"]
assert {{record.kind for record in made}} >= {{"stream", "driver"}}
assert all(type(record.bytes) is int and record.source == "new" for record in made)
count = len(keep.kept)
logging.getLogger("jitgen").setLevel(logging.WARNING)
layer.forward(x, w)
assert len(keep.kept) == count
logging.getLogger("jitgen.exec").setLevel(logging.INFO)
layer.forward(x, w)
assert len(keep.kept) == count + 1
logging.disable(logging.INFO)
layer.forward(x, w)
assert len(keep.kept) == count + 1
""", JITGEN_VERBOSE="")  # fmt: skip
    assert said == ""


def test_a_root_logger_at_debug_is_not_flooded() -> None:
    said = run_child(KEEP + "logging.basicConfig(level=logging.DEBUG, handlers=[keep])\n" + BEGIN
                     + CALL + "assert not keep.kept\n", JITGEN_VERBOSE="")  # fmt: skip
    assert said == ""


def test_debug_tells_of_targets_too() -> None:
    run_child(KEEP + """
logging.getLogger("jitgen").setLevel(logging.DEBUG)
logging.root.addHandler(keep)
""" + BEGIN + CALL + f"""
assert names() == ["jitgen.dispatch", *{ALL}], names()
record = next(record for record in keep.kept if record.name == "jitgen.dispatch")
assert record.levelno == logging.DEBUG and record.chosen in ("yes", "no")
""", JITGEN_VERBOSE="")  # fmt: skip


OWN = {
    "handler": "logging.getLogger('jitgen').addHandler(keep)",
    "handler of a child": "for kind in ('exec', 'generate'):\n"
    "    logging.getLogger('jitgen').getChild(kind).addHandler(keep)",
    "dictConfig": """import logging.config
logging.config.dictConfig({
    "version": 1, "disable_existing_loggers": False,
    "handlers": {"keep": {"()": lambda: keep}},
    "loggers": {"jitgen": {"level": "INFO", "handlers": ["keep"]}},
})""",
    "dictConfig by the root": """import logging.config
logging.config.dictConfig({
    "version": 1, "disable_existing_loggers": False,
    "handlers": {"keep": {"()": lambda: keep}},
    "loggers": {"jitgen": {"level": "INFO"}}, "root": {"handlers": ["keep"]},
})""",
}


#: "before", a level alone leaves the printing to JITGEN_VERBOSE
@pytest.mark.parametrize(
    ("how", "when"),
    [*((how, "after") for how in OWN), *((how, "before") for how in list(OWN)[:-1])],
)
def test_a_program_that_configures_jitgen_gets_the_records_instead(how: str, when: str) -> None:
    own = OWN[how] + "\n"
    text = KEEP + own * (when == "before") + BEGIN + own * (when == "after") + CALL
    lines = told("", text + f"assert names() == {ALL}, names()\n"
                 "assert len([r for r in keep.kept if r.name == 'jitgen.exec']) == 1",
                 JITGEN_VERBOSE="1")  # fmt: skip
    assert {line[0] for line in lines} == {"operation", "info"}


def test_handlers_of_the_root_logger_print_no_line_twice() -> None:
    begin = "import logging\nlogging.basicConfig(level=logging.INFO)\n" + BEGIN
    assert len(of("exec", told(CALL, begin, JITGEN_VERBOSE="1"))) == 1


def test_fields_hold_no_commas_and_no_ends_of_lines(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "jitgen"):
        records.tell(records.DISPATCH, "a,b", "no\n%s", 0.123456)
    assert [record.getMessage() for record in caplog.records] == ["dispatch,a;b,no %s,0.1235"]
    with pytest.raises(ValueError, match="zip"):
        records.tell(records.DISPATCH, "too few")


# ---- threads and processes -----------------------------------------------------------------------

MANY = """
import threading, time
layers = [jitgen.FullyConnected(4, 8, 8 + i, threads=1, bias=False) for i in range(4)]
weights = [ones(8 + i, 8) for i in range(4)]
x = ones(4, 8)
def work(i, count):
    for _ in range(count):
        layers[i].forward(x, weights[i])
def all_threads(count):
    threads = [threading.Thread(target=work, args=(i, count)) for i in range(4)]
    for thread in threads:
        thread.start()
    return threads
"""


def _by_size(lines: list[list[str]]) -> Counter[int]:
    """How many calls there were of each layer; every line must be whole."""
    found = of("exec", lines)
    pattern = r"batch=4 in_features=8 out_features=(\d+) w=plain"
    sizes = [re.fullmatch(pattern, line["shape"]) for line in found]
    assert all(sizes), found
    assert all(re.fullmatch(r"\d+\.\d{4}", line["ms"]) for line in found)
    return Counter(int(size[1]) for size in sizes if size)


def test_lines_of_threads_do_not_mix() -> None:
    lines = told(MANY + "sys.setswitchinterval(1e-5)\n"
                 "for thread in all_threads(400): thread.join()", JITGEN_VERBOSE="1")  # fmt: skip
    assert _by_size(lines) == dict.fromkeys(range(8, 12), 400)


def test_lines_of_forked_processes_do_not_mix() -> None:
    """They are forked while other threads print: no line is lost, none comes twice."""
    lines = told(MANY + """
threads = all_threads(600)
children = []
for _ in range(8):
    child = os.fork()
    if child == 0:
        work(0, 50)
        os._exit(0)
    children.append(child)
    time.sleep(0.002)
for thread in threads:
    thread.join()
end = time.monotonic() + 60
for child in children:
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        assert time.monotonic() < end, "a child waits forever"
        time.sleep(0.01)
""", JITGEN_VERBOSE="exec")  # fmt: skip
    assert _by_size(lines) == {8: 600 + 8 * 50, 9: 600, 10: 600, 11: 600}
    assert len([line for line in lines if line[0] == "operation"]) == 1
