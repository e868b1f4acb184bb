"""Negative controls of the execution rig: each machine must report what a bad kernel does.

Every bad job runs between two good ones that must still give right results. The kernels are tiny
and hand-encoded (rig.controls); jitgen is not involved.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from needs import need
from rig import bochs, bochs_rom, count, native, qemu
from rig.controls import (
    A64,
    A64_RETURN,
    AVX512_REGISTERS,
    STORE_VECTOR,
    X86,
    X86_RETURN,
    Kernels,
    a64,
    x86,
)
from rig.job import Buffer, Job, Pointers, Result, RigError


@dataclass(frozen=True)
class Machine:
    """A way to run kernels. run takes jobs and timeout=seconds."""

    run: Callable[..., list[Result]]
    kernels: Kernels
    illegal: str  # what it calls an illegal instruction
    fault: str  # what it calls a memory fault


@pytest.fixture(params=["qemu", "bochs", "native"])
def machine(request: pytest.FixtureRequest) -> Machine:
    """Each machine in turn."""
    if request.param == "qemu":
        need(qemu.available())
        return Machine(partial(qemu.run, vector_bits=256), A64, "SIGILL", "SIGSEGV")
    if request.param == "bochs":
        need(bochs.available())
        return Machine(bochs.run, X86, "#UD", "#PF")
    need(native.available(), installable=False)
    arm = platform.machine().lower() in ("aarch64", "arm64")
    return Machine(native.run, A64 if arm else X86, "SIGILL", "SIGSEGV")


def good(machine: Machine, seed: int) -> tuple[Job, np.ndarray]:
    """A job that copies random numbers, and the numbers."""
    data = np.random.default_rng(seed).standard_normal(1300).astype(np.float32)
    target = Buffer(np.zeros_like(data), write=True)
    return Job(machine.kernels.copy, [Buffer(data), target, data.nbytes]), data


def run_between(machine: Machine, bad: Job, timeout: float = 60.0) -> Result:
    """Run a job between two good ones, check those, return its result."""
    first, first_data = good(machine, 1)
    last, last_data = good(machine, 2)
    before, result, after = machine.run([first, bad, last], timeout=timeout)
    for each, data in ((before, first_data), (after, last_data)):
        assert each.ok, each.error
        np.testing.assert_array_equal(each.outputs[0], data)
    return result


def test_good_jobs_in_order(machine: Machine) -> None:
    """Thirty jobs give thirty right results in order; the input arrays stay as they are."""
    pairs = [good(machine, seed) for seed in range(30)]
    results = machine.run([job for job, _ in pairs])
    for (job, data), result in zip(pairs, results, strict=True):
        assert result.ok and result.returned and result.value == 0, result.error
        np.testing.assert_array_equal(result.outputs[0], data)
        assert not job.words[1].data.any()


def test_no_jobs(machine: Machine) -> None:
    """Nothing to do is not an error."""
    assert machine.run([]) == []


@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
@pytest.mark.parametrize("nbytes", [1, 100, 4096, 4100])
@pytest.mark.parametrize("side", ["past the end", "before the start"])
def test_out_of_bounds(machine: Machine, write: bool, nbytes: int, side: str) -> None:
    """One byte outside on the guarded side faults, and the report says where."""
    end = side == "past the end"
    data = np.zeros(nbytes, np.uint8)
    buffer = Buffer(data, write=True, place="end" if end else "start")
    code = machine.kernels.write_at if write else machine.kernels.read_at
    result = run_between(machine, Job(code, [buffer, nbytes if end else -1]))
    assert not result.ok and not result.returned and result.outputs == []
    assert machine.fault in result.error and "code+0x" in result.error
    place = f"words[0]+{nbytes} (past its end" if end else "words[0]-1 (before its start"
    assert place in result.error


@pytest.mark.parametrize("offset", [0, 99])
def test_last_byte_inside(machine: Machine, offset: int) -> None:
    """First and last byte of a buffer may be written, whichever way it is placed."""
    want = np.zeros(100, np.uint8)
    for place in ("end", "start"):
        buffer = Buffer(want, write=True, place=place)
        result = run_between(machine, Job(machine.kernels.write_at, [buffer, offset]))
        assert result.ok, result.error
        assert np.flatnonzero(result.outputs[0]).tolist() == [offset]


@pytest.mark.parametrize("place, offset", [("end", -1), ("start", 100)])
def test_write_on_the_unguarded_side(machine: Machine, place: str, offset: int) -> None:
    """A stray write into the rest of the page is found after the run."""
    buffer = Buffer(np.zeros(100, np.uint8), write=True, place=place)
    result = run_between(machine, Job(machine.kernels.write_at, [buffer, offset]))
    assert result.returned and not result.ok
    assert "the end of words[0]" in result.error or "the start of words[0]" in result.error


def test_write_to_read_only(machine: Machine) -> None:
    """A buffer not declared writable cannot be written."""
    buffer = Buffer(np.zeros(100, np.uint8))
    result = run_between(machine, Job(machine.kernels.write_at, [buffer, 50]))
    assert machine.fault in result.error and "words[0]+50 (inside" in result.error


def test_empty_buffer(machine: Machine) -> None:
    """An empty buffer has an address at which nothing can be read, before or after."""
    empty = Buffer(np.zeros((0, 3)), write=True)
    result = run_between(machine, Job(machine.kernels.nothing, [empty]))
    assert result.ok and result.outputs[0].shape == (0, 3)
    for offset in (0, -1):
        buffer = Buffer(np.zeros(0, np.float32))
        result = run_between(machine, Job(machine.kernels.read_at, [buffer, offset]))
        assert machine.fault in result.error


def test_argument_struct_is_guarded(machine: Machine) -> None:
    """Reading a word that was not passed faults."""
    result = run_between(machine, Job(machine.kernels.read_at, [Buffer(np.zeros(4))]))
    assert machine.fault in result.error and "the argument struct+8 (past" in result.error


def test_illegal_instruction(machine: Machine) -> None:
    """An illegal instruction is named and located."""
    result = run_between(machine, Job(machine.kernels.illegal, []))
    assert result.error.startswith(machine.illegal) and "at code+0x0" in result.error


def test_running_off_the_end(machine: Machine) -> None:
    """Code without a return runs into a trap right behind it."""
    whole = machine.kernels.return_7
    code = whole[:-4] if machine.kernels is A64 else whole[:-1]
    result = run_between(machine, Job(code, []))
    assert not result.returned
    # x86 reports a breakpoint trap behind the trap byte, a fault at it.
    places = [f"at code+{len(code) + i:#x}" for i in (0, 1)]
    assert result.error.endswith(tuple(places))


def test_clobbered_registers(machine: Machine) -> None:
    """Each callee-saved register is checked, and named."""
    for name, code in machine.kernels.clobber.items():
        result = run_between(machine, Job(code, []))
        assert not result.ok and result.returned
        assert result.error == f"clobbered callee-saved {name}"


def test_stack_pointer_and_control_register(machine: Machine) -> None:
    """A changed stack pointer and changed floating-point control are reported."""
    assert "off by" in run_between(machine, Job(machine.kernels.stack_pointer, [])).error
    assert "changed from" in run_between(machine, Job(machine.kernels.rounding, [])).error


def test_stack_overflow(machine: Machine) -> None:
    """The kernel's stack is guarded."""
    assert machine.fault in run_between(machine, Job(machine.kernels.stack_overflow, [])).error


def test_hang(machine: Machine) -> None:
    """An endless loop is ended, blamed on its job, and the rest runs."""
    result = run_between(machine, Job(machine.kernels.hang, []), timeout=1.0)
    assert not result.ok and result.error.startswith("hung")


def test_status(machine: Machine) -> None:
    """A status other than 0 is not ok, and the value is there."""
    result = run_between(machine, Job(machine.kernels.return_7, []))
    assert (result.ok, result.value, result.error) == (False, 7, "returned status 7")


def test_pointers(machine: Machine) -> None:
    """An array of pointers reaches its buffers; writable ones come back in order."""
    buffers = [Buffer(np.full(8, i, np.int8), write=True) for i in range(3)]
    result = run_between(machine, Job(machine.kernels.write_second, [Pointers(buffers)]))
    assert result.ok, result.error
    assert [array[0] for array in result.outputs] == [0, 9, 2]


def test_one_buffer_in_two_words(machine: Machine) -> None:
    """The same Buffer twice is the same memory, and one output."""
    both = Buffer(np.arange(64, dtype=np.uint8), write=True)
    result = run_between(machine, Job(machine.kernels.copy, [both, both, 64]))
    assert result.ok and len(result.outputs) == 1
    np.testing.assert_array_equal(result.outputs[0], both.data)


def test_counting(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Kernels that returned are counted; those that crashed are not."""
    monkeypatch.setenv(count.FILE_VARIABLE, str(tmp_path / "counts"))
    jobs = [good(machine, 1)[0], Job(machine.kernels.illegal, []), good(machine, 2)[0]]
    machine.run(jobs, isa="test")
    assert sum(count.read(tmp_path / "counts").values()) == 2


def test_counts_of_several_processes(tmp_path: Path) -> None:
    """Processes append to one file, read() sums it, table() shows it."""
    file = tmp_path / "counts"
    program = "from rig import count; [count.count('sve256', 'qemu-user', 3) for _ in range(50)]"
    environment = dict(os.environ, PYTHONPATH=str(Path(__file__).parent))
    environment[count.FILE_VARIABLE] = str(file)
    started = [subprocess.Popen([sys.executable, "-c", program], env=environment) for _ in "abc"]
    assert [process.wait() for process in started] == [0, 0, 0]
    counts = count.read(file)
    assert counts == {("sve256", "qemu-user"): 450}
    assert count.table(counts).splitlines()[1].split() == ["sve256", "450", "qemu-user"]


@pytest.mark.parametrize("runner", [bochs, native], ids=["bochs", "native"])
def test_avx512_registers_are_poisoned(runner: object) -> None:
    """Vector registers hold NaN before a call, mask registers a pattern."""
    need(runner.available(), installable=runner is bochs)
    if runner is native and "avx512f" not in native.x86_flags():
        pytest.skip("this processor has no AVX-512")
    buffer = Buffer(np.zeros(33, np.float32), write=True)
    (result,) = runner.run([Job(AVX512_REGISTERS, [buffer])])
    assert result.ok, result.error
    assert np.isnan(result.outputs[0][:32]).all()
    assert result.outputs[0][32:].view(np.uint32)[0] == 0xA5A5


def test_bochs_model_is_an_isa_gate() -> None:
    """A VNNI instruction is illegal on a model without it."""
    code = x86("62f2754850c2" + X86_RETURN)  # vpdpbusd zmm0, zmm1, zmm2
    for model, ok in (("corei7_skylake_x", False), ("corei7_icelake_u", True)):
        need(bochs.available(model))
        (result,) = bochs.run([Job(code, [])], model=model)
        assert result.ok is ok
        assert ok or result.error.startswith("#UD")


def test_bochs_several_boots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs that exceed one image are spread over boots and come back in order."""
    need(bochs.available())
    monkeypatch.setattr(bochs, "IMAGE_BYTES", 200_000)
    machine = Machine(bochs.run, X86, "#UD", "#PF")
    test_good_jobs_in_order(machine)


def test_bochs_unknown_model() -> None:
    """A model that does not exist is refused by name."""
    need(bochs.available())
    with pytest.raises(RigError, match="no_such_cpu"):
        bochs.run([Job(X86.copy, [])], model="no_such_cpu")


def test_bochs_rom_is_assembled_from_its_source() -> None:
    """The constant in bochs_rom.py is what the assembler makes of bochs_rom.S."""
    if platform.machine().lower() not in ("x86_64", "amd64") or not shutil.which("as"):
        pytest.skip("needs GNU as for x86-64")
    assert bochs_rom.rom() == bochs_rom.assemble()


@pytest.mark.parametrize("bits", [128, 256, 512, 1024, 2048])
def test_sve_length_mismatch(bits: int) -> None:
    """Code for 256-bit vectors is right under 256 and caught under shorter and longer ones."""
    need(qemu.available())
    job = Job(STORE_VECTOR, [Buffer(np.zeros(32, np.uint8), write=True)])
    (result,) = qemu.run([job], bits)
    if bits <= 256:
        assert result.ok and result.outputs[0].sum() == bits // 8
    else:
        assert "SIGSEGV" in result.error and "words[0]" in result.error


@pytest.mark.parametrize("bits", [128, 384, 2048])
def test_sve_registers_are_poisoned(bits: int) -> None:
    """Vector registers hold NaN before a call, upper part of z8 too; predicates a pattern."""
    need(qemu.available())
    size = bits // 8
    # ldp x1, x2, [x0]; str z8, [x1]; str z31, [x1, #1, mul vl]; str p5, [x2]
    code = a64(0xA9400801, 0xE5804028, 0xE580443F, 0xE5800045, *A64_RETURN)
    vectors = Buffer(np.zeros(size // 2, np.float32), write=True)
    predicate = Buffer(np.zeros(size // 8, np.uint8), write=True)
    (result,) = qemu.run([Job(code, [vectors, predicate])], bits)
    assert result.ok, result.error
    assert np.isnan(result.outputs[0]).all() and np.isnan(result.outputs[0].view(np.float16)).all()
    assert (result.outputs[1] == 0xA5).all()


def test_sve_absent() -> None:
    """On a processor without SVE, NEON runs and SVE is illegal; asking for a length is refused."""
    need(qemu.available())
    zeros = np.zeros(32, np.uint8)
    copy = Job(A64.copy, [Buffer(zeros + 5), Buffer(zeros, write=True), 32])
    vector = Job(STORE_VECTOR, [Buffer(zeros, write=True)])
    first, second = qemu.run([copy, vector], 0, cpu="neoverse-n1")
    assert first.ok and (first.outputs[0] == 5).all()
    assert second.error.startswith("SIGILL")
    with pytest.raises(RigError, match="vector_bits=256"):
        qemu.run([copy], 256, cpu="neoverse-n1")


def test_sve_length_not_offered() -> None:
    """A vector length that the processor lacks is an error, not a silent other length."""
    need(qemu.available())
    job = Job(STORE_VECTOR, [Buffer(np.zeros(256, np.uint8), write=True)])
    with pytest.raises(RigError, match="offers 512"):
        qemu.run([job], 1024, cpu="a64fx")
    with pytest.raises(ValueError, match="vector_bits=200"):
        qemu.run([job], 200)


def test_streaming_mode_left_on() -> None:
    """A kernel that forgets smstop is reported, and does not disturb the next."""
    need(qemu.available())
    machine = Machine(partial(qemu.run, vector_bits=512), A64, "SIGILL", "SIGSEGV")
    result = run_between(machine, Job(a64(0xD503477F, *A64_RETURN), []))  # smstart
    assert "streaming mode or ZA left on" in result.error


def test_arguments_are_checked() -> None:
    """Wrong arguments are refused where they are given."""
    with pytest.raises(ValueError, match=r"words\[1\]"):
        Job(b"\0", [0, 2**64])
    with pytest.raises(ValueError, match="code"):
        Job(b"", [])
    with pytest.raises(ValueError, match="place='middle'"):
        Buffer(np.zeros(1), place="middle")
    with pytest.raises(TypeError, match="data=list"):
        Buffer([1.0])
    with pytest.raises(ValueError, match="n=-1"):
        count.count("avx2", "native", -1)
