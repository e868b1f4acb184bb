"""Element types: `DTYPES` is the one place of a type, and NumPy's words for one are taken.

Not here: kernels of each type (the tests of kernels), bad values at every door (test_doors.py).
"""

from __future__ import annotations

import ast
import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import jitgen
from jitgen import isa
from jitgen.analysis.measure import emit_peak
from jitgen.cli import main
from jitgen.debug import dwarf
from jitgen.emit.routine import Operand, Routine
from jitgen.gemm.operands import make_arguments
from jitgen.gemm.plan import make_plan
from jitgen.gemm.spec import make_spec
from jitgen.kernels.elementwise import emit_map
from jitgen.kernels.pack import emit_packer
from jitgen.primitives.nest.gemm import Product
from jitgen.primitives.nest.run import Run
from jitgen.run import cpu
from jitgen.target import ANY_WIDTH, AVX2, AVX512, TARGETS, sve
from jitgen.types import DTYPES, NUMPY, DType, name_of
from tools import check

ONE: dict[str, Any] = {"threads": 1}
#: Functions with a dtype: what they give for one, to be compared
DOORS: dict[str, Callable[[Any], Any]] = {
    "brgemm": lambda dtype: id(jitgen.brgemm(3, 5, 4, dtype)),
    "brgemm packed": lambda dtype: id(jitgen.brgemm(3, 5, 4, dtype, packed_b=True)),
    "make_spec": lambda dtype: make_spec(3, 5, 4, dtype),
    "machine": lambda dtype: AVX2.machine(dtype, 4).arithmetic,
    "emit_peak": lambda dtype: emit_peak(AVX2, dtype)[0].code,
    "FullyConnected": lambda dtype: repr(jitgen.FullyConnected(2, 3, 4, dtype=dtype, **ONE)),
    "Convolution": lambda dtype: repr(
        jitgen.Convolution(1, 1, 4, 4, 1, 3, dtype=dtype, **ONE).conv
    ),
    "MaxPool": lambda dtype: repr(jitgen.MaxPool(1, 1, 4, 4, 2, dtype=dtype, **ONE).conv),
    "Lstm": lambda dtype: repr(jitgen.Lstm(1, 2, 3, 4, dtype=dtype, **ONE).layer),
    "Mlp": lambda dtype: repr(jitgen.Mlp(2, (3, 4), dtype=dtype, **ONE).layers[0].layer),
}  # fmt: skip


class Text(str):
    """A str that is not quite one."""


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("name", "spellings"),
    [
        ("f32", [Text("f32"), np.float32, np.single, np.dtype(np.float32), "float32", "single",
                 "f4", "=f4", np.ones(1, np.float32).dtype]),
        ("f64", [np.float64, np.double, np.dtype("float64"), "float64", "double", np.str_("f8")]),
    ],
)  # fmt: skip
def test_numpys_words_for_a_type(door: str, name: str, spellings: list[Any]) -> None:
    """They become the short name at the door: the same kernel, the same layer."""
    if all(cpu.targets().values()):
        pytest.skip("no target runs on this CPU")
    wanted = DOORS[door](name)
    for spelling in spellings:
        assert DOORS[door](spelling) == wanted, spelling


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (np.dtype(np.float32).newbyteorder(), ValueError, "is byte-swapped; arrays are in native"),
        (np.dtype(np.float64).newbyteorder().str, ValueError, "is byte-swapped"),
        ("float16", ValueError, "'float16' is not one of f32, f64, or NumPy's for them"),
        (np.int32, ValueError, "is not one of f32, f64"),
        (np.dtype("f4, f4"), ValueError, "is not one of f32, f64"),
        ("f4, f4", ValueError, "is not one of"), (",", ValueError, "is not one of"),
        ("", ValueError, "is not one of"), (np.floating, ValueError, "is not one of"),
        (None, TypeError, "None is not one of f32, f64"), (float, TypeError, "is not one"),
        (4, TypeError, "4 is not one of"), (["f4"], TypeError, "is not one of"),
        (np.ones(1, np.float32), TypeError, "is not one of"),
    ],
)  # fmt: skip
def test_no_type(door: str, value: Any, error: type[Exception], words: str) -> None:
    if all(cpu.targets().values()):
        pytest.skip("no target runs on this CPU")
    with pytest.raises(error, match=rf"dtype=.*{re.escape(words)}"):
        DOORS[door](value)


def test_the_command_line_takes_them(capsys: pytest.CaptureFixture[str]) -> None:
    """And an unknown one is refused."""
    shown = []
    for spelling in ("f64", "float64", "double"):
        assert not main(["show", "5", "7", "6", "--isa", "avx2", "--dtype", spelling])
        shown.append(capsys.readouterr().out)
    assert "5 x 7 x 6 f64" in shown[0] and len(set(shown)) == 1
    assert main(["show", "5", "7", "6", "--isa", "avx2", "--dtype", ">f4"])
    assert "dtype='>f4' is byte-swapped" in capsys.readouterr().err


def test_records_are_right() -> None:
    """As NumPy has them, and as struct packs them."""
    for name, dtype in DTYPES.items():
        facts = np.finfo(NUMPY[name])
        assert (dtype.name, dtype.size) == (name, NUMPY[name].itemsize)
        assert (dtype.epsilon, dtype.tiny) == (float(facts.eps), float(facts.tiny))
        one = np.ones((), NUMPY[name])
        bits = dtype.bias << (dtype.precision - 1)
        assert dtype.encode(1.0) == dtype.encode_bits(bits) == one.tobytes()
        assert name_of(NUMPY[name]) == name and name_of(NUMPY[name].newbyteorder()) is None


def test_a_spec_has_four_types() -> None:
    for name in DTYPES:
        spec = make_spec(3, 5, 4, name)
        assert (spec.a_type, spec.b_type, spec.acc_type, spec.c_type) == (name,) * 4
        assert spec.dtype == name and f"a_type='{name}'" in repr(spec)
        assert pickle.loads(pickle.dumps(spec)) == copy.copy(spec) == spec
        described = spec.described()
        assert list(described)[:5] == ["m", "n", "k", "dtype", "lda"]
        assert described["dtype"] == name
        assert {**vars(spec), "dtype": name}.items() >= described.items()


# ---- a further type -----------------------------------------------------------------------------

#: Stored in two bytes, computed in f32, two neighbours at once
PRETEND = DType("bf16", "float", 2, 8, -126, "f32", "", "uint16", "__bf16", ku=2)


@pytest.fixture
def bf16(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(DTYPES, PRETEND.name, PRETEND)
    return PRETEND.name


def test_a_further_type_needs_no_other_place(bf16: str) -> None:
    """Its spec: types, sizes, ranges of numbers and shapes follow from the record."""
    spec = make_spec(6, 10, 8, np.uint16, alpha=3e38)
    assert (spec.a_type, spec.b_type, spec.acc_type, spec.c_type) == (bf16, bf16, "f32", "f32")
    assert (spec.a_bytes, spec.b_bytes, spec.acc_bytes, spec.c_bytes) == (2, 2, 4, 4)
    assert (spec.dtype, spec.ku, spec.steps) == (bf16, 2, 4)
    assert (spec.b_shape, spec.b_leading) == ((4, 10, 2), (20, 2))
    panels = make_spec(6, 10, 8, bf16, panel=8)
    assert (panels.b_shape, panels.b_leading) == ((2, 4, 8, 2), (64, 16, 2))
    assert panels.stride_b == 2 * 8 * 8
    with pytest.raises(ValueError, match=r"alpha=1e\+300 is too large for f32"):
        make_spec(6, 10, 8, bf16, alpha=1e300)
    with pytest.raises(ValueError, match=r"k=7.*bf16 takes 2 steps"):
        make_spec(6, 10, 7, bf16)
    with pytest.raises(ValueError, match="A spans 4294967296 bytes"):
        make_spec(1 << 16, 8, 1 << 15, bf16)
    make_spec((1 << 15) - 1, 8, 1 << 15, bf16)  # of f32, it were too large


@pytest.mark.parametrize("batch", ["stride", "address", "offset"])
@pytest.mark.parametrize("panel", [0, 8])
def test_arrays_of_a_further_type(bf16: str, batch: str, panel: int) -> None:
    """The doors of a call ask for its NumPy dtype, and an interleaved B."""
    spec = make_spec(6, 10, 8, bf16, batch=batch, panel=panel, epilogue=("bias", "residual"))
    a, b = np.zeros((3, 6, 8), np.uint16), np.zeros((3, *spec.b_shape), np.uint16)
    c = np.zeros((6, 10), np.float32)
    extra = dict.fromkeys(("a_offsets", "b_offsets", "bias_row", "mask"))
    extra |= {"bias": np.zeros(10, np.float32), "residual": np.zeros((6, 10), np.float32)}
    if batch == "offset":
        extra |= {"a_offsets": np.arange(3) * 48, "b_offsets": np.arange(3) * b[0].size}
    give: Callable[..., Any] = list if batch == "address" else np.asarray
    make_arguments(spec, give(a), give(b), c, extra)
    with pytest.raises(TypeError, match=r"a(\[0\])? has dtype float32; it must be uint16"):
        make_arguments(spec, give(a.astype(np.float32)), give(b), c, extra)
    with pytest.raises(TypeError, match="c has dtype uint16; it must be float32"):
        make_arguments(spec, give(a), give(b), c.astype(np.uint16), extra)
    with pytest.raises(TypeError, match="bias has dtype uint16; it must be float32"):
        wrong = extra | {"bias": np.zeros(10, np.uint16)}
        make_arguments(spec, give(a), give(b), c, wrong)
    if batch != "offset":  # whose arrays may have any shape
        with pytest.raises(ValueError, match=r"b.* has shape"):
            make_arguments(spec, give(a), give(np.zeros((3, 8, 10), np.uint16)), c, extra)
    else:
        beyond = extra | {"b_offsets": np.arange(3) * b[0].size + 1}
        with pytest.raises(ValueError, match=f"they must lie from 0 to {2 * b[0].size}"):
            make_arguments(spec, a, b, c, beyond)


@pytest.mark.parametrize("target", [AVX2, AVX512, sve(256)])
def test_machines_of_a_further_type(bf16: str, target: Any) -> None:
    """Memory is counted in the storage type, registers and constants in the arithmetic type; what
    would have to convert says that it cannot."""
    machine, plain = target.machine(bf16, 64), target.machine("f32", 64)
    assert (machine.storage, machine.arithmetic) == (PRETEND, DTYPES["f32"])
    assert (machine.element, machine.lanes) == (2, plain.lanes)
    assert machine.vector_bits == plain.vector_bits == target.machine(bf16, ANY_WIDTH).vector_bits
    assert machine.const(1.5) == plain.const(1.5)
    machine.add(0, 1, 2)
    plan = make_plan(make_spec(64, 64, 64, bf16), target.facts(machine))
    assert plan.nest
    refusals: list[Callable[[], Any]] = [
        lambda: machine.load(0, (1, 0), 4), lambda: machine.store(0, (1, 0), 4),
        lambda: machine.broadcast(0, (1, 0)),
        lambda: emit_map("copy", 2, 8, bf16, target),
        lambda: emit_packer(8, 16, 16, 0, 16, bf16, False, target),
        lambda: jitgen.brgemm(6, 10, 8, bf16, target=target),
    ]
    for call in refusals:
        with pytest.raises(NotImplementedError, match=f"storage='bf16': {machine.name} has no"):
            call()
    with pytest.raises(ValueError, match="arithmetic='bf16' is no float of 4 or 8 bytes"):
        isa.open_machine(target.family, bf16, target.vector_bits)
    with pytest.raises(ValueError, match="arithmetic='f31' is not one of f32, f64, bf16"):
        isa.open_machine(target.family, "f31", target.vector_bits)


def test_layers_of_a_further_type(bf16: str) -> None:
    """Elements, scratch memory, bounds of products follow; a call says what is missing."""
    assert Run((), ("a", "c"), 1, AVX2, bf16, {"x": 96, "y": 33}).scratch_bytes == 192 + 128
    product = Product(6, 10, 8, bf16, AVX2, 1, 8)
    assert product.element == 2
    if not all(cpu.targets().values()):
        layer = jitgen.FullyConnected(2, 4, 8, dtype=np.uint16, **ONE)
        arrays = [np.zeros(shape, np.uint16) for shape in ((2, 4), (8, 4), (8,))]
        with pytest.raises(NotImplementedError, match="storage='bf16'"):
            layer.forward(*arrays)
        with pytest.raises(TypeError, match="x has dtype float32; it must be uint16"):
            layer.forward(arrays[0].astype(np.float32), *arrays[1:])
        with pytest.raises(NotImplementedError, match="storage='bf16'"):
            jitgen.pack_b(np.zeros((8, 16), np.uint16), 16)


def test_a_further_type_in_objects_and_debuggers(bf16: str, tmp_path: Path) -> None:
    """The header numbers it, the command line tells it, DWARF has its name and encoding."""
    kernel = jitgen.brgemm(4, 8, 16, target="avx2")
    jitgen.export([kernel], tmp_path)
    header = next(tmp_path.glob("*.h")).read_text()
    assert re.search(r"JITGEN_F32 = 0,.*JITGEN_F64 = 1,.*JITGEN_BF16 = 2", header, re.S)
    image = SimpleNamespace(
        routine=Routine("copy", (Operand("a", "x", bf16),), AVX2, b""), architecture="x86_64",
        argument=7, address=0, code=b"", room=0, name="kernel",
    )  # fmt: skip
    data = dwarf._information(image, Path("kernel.s"))  # type: ignore[arg-type]
    assert b"__bf16\0" + bytes([2, 4]) in data


def test_nothing_else_names_a_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But the files of a list, and defaults: `tools.check` looks."""
    assert not [s for s in check.house_rules() if "element type" in s]
    for text in ('x = {"f64": 8}', 'def f(d):\n    return d == "f32"'):
        assert check._element_types(ast.parse(text))
    default = 'def f(dtype="f32", *, other="f64"): """f32 or f64"""'
    assert not check._element_types(ast.parse(default))
    monkeypatch.setattr(check, "ROOT", tmp_path)
    for room in ("isa", "jitgen", "primitives"):
        (tmp_path / room).mkdir()
        (tmp_path / room / "cells.py").write_text('"""A module."""\nx = "f32"\n')
    named = [s.split(":")[0] for s in check.house_rules() if "names the element type" in s]
    assert named == ["isa/cells.py", "jitgen/cells.py", "primitives/cells.py"]


def test_targets_still_have_all_types() -> None:
    for target in TARGETS.values():
        for name in DTYPES:
            machine = target.machine(name, ANY_WIDTH)
            assert machine.storage is machine.arithmetic is DTYPES[name]
            assert machine.lanes * machine.element * 8 == machine.vector_bits
