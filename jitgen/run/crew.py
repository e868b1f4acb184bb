"""Entering a team of threads, waiting for it and leaving it: machine code, so that nothing in
Python can come between.

A team's context is a table of words. `emit_member` is what an OpenMP runtime calls in every thread
of its team. `emit_crew` needs no runtime: it starts threads of the C library, does the first job
itself, and returns when all have ended. Both run to their end whatever signals arrive: Python
handles them after the call, when no thread writes any more. Not here: what a thread does
(`jitgen.run.replay`), which of the two is used (`jitgen.run.team`).
"""

from __future__ import annotations

from collections.abc import Mapping

from jitgen.emit.frame import Frame
from jitgen.emit.routine import Operand, Written, emitter
from jitgen.isa.machine import Machine
from jitgen.run import replay
from jitgen.target import Target

#: Words of a context, in bytes: functions of the OpenMP runtime, the size its team must have, and
#: whether it had another one; all jobs, and the function that does one of them;
(
    THREAD_NUMBER, TEAM_SIZE, SIZE, MISMATCH, JOBS, REPLAY,
    # for threads of our own: functions of the C library, a mutex that holds them until all have
    # been started, what each does, whether it may, and the error number if one was not to be had
    LOCK, UNLOCK, MUTEX, CREATE, JOIN, HELPER, GO, REFUSED,
) = range(0, 112, 8)  # fmt: skip
CONTEXT_BYTES = 128
#: Bytes from one job to the next, a cache line, because its status is written; what follows the
#: words of `jitgen.run.replay` in a job: what it returned, its thread, and its context
JOB_BYTES = 64
STATUS, HANDLE, CONTEXT = 32, 40, 48
#: What the words of a context and of a job are, by offset, for those who look at a call
CONTEXT_WORDS = {
    "thread_number": THREAD_NUMBER, "team_size": TEAM_SIZE, "size": SIZE, "mismatch": MISMATCH,
    "jobs": JOBS, "replay": REPLAY, "lock": LOCK, "unlock": UNLOCK, "mutex": MUTEX,
    "create": CREATE, "join": JOIN, "helper": HELPER, "go": GO, "refused": REFUSED,
}  # fmt: skip
JOB_WORDS = {**replay.WORDS, "status": STATUS, "handle": HANDLE, "context": CONTEXT}


@emitter
def emit_member(target: Target) -> Written:
    """`void member(uint64_t context[])`, called by an OpenMP runtime in every thread of a team.

    It does the job of the number that the runtime gives the thread; if the team has not the
    expected size, it does nothing but set context[MISMATCH].
    """
    machine, frame = _begin(target)
    program, stack = machine.program, machine.stack_pointer
    context, job = machine.kept[:2]
    number, scratch = frame.take("number"), frame.take("scratch")
    machine.begin((context, job), 64, calls=True)
    machine.move(context, machine.argument)
    wrong = program.new_label()
    for function in (TEAM_SIZE, THREAD_NUMBER):
        machine.load_word(scratch, (context, function))
        machine.call(scratch, context)
        # an int: the upper half of the register is anything
        machine.store_word(machine.result, (stack, 0))
        machine.load_half(number, (stack, 0))
        if function == TEAM_SIZE:
            machine.load_word(scratch, (context, SIZE))
            machine.jump_if_different(number, scratch, wrong)
    machine.multiply(number, number, JOB_BYTES)
    machine.load_word(job, (context, JOBS))
    machine.sum(job, job, number)
    machine.load_word(scratch, (context, REPLAY))
    machine.call(scratch, job)
    machine.store_word(machine.result, (job, STATUS))
    done = program.new_label()
    machine.jump(done)
    machine.place(wrong)
    machine.set(scratch, 1)
    machine.store_word(scratch, (context, MISMATCH))
    machine.place(done)
    machine.end()
    return _written("member", CONTEXT_WORDS, target, frame)


@emitter
def emit_crew(target: Target) -> Written:
    """`void crew(uint64_t context[])`: does all jobs, each on a thread of its own, the first on the
    caller's.

    The threads are started before any may begin, because they will wait for each other; if the
    system refuses one, none does anything, and context[REFUSED] is the error number.
    """
    machine, frame = _begin(target)
    program, stack = machine.program, machine.stack_pointer
    context, job, left, status, none, other = machine.kept[:6]
    function, handle = frame.take("function"), frame.take("handle")
    machine.begin(machine.kept[:6], 64, calls=True)
    machine.move(context, machine.argument)
    again, started, leave, waiting, done = (program.new_label() for _ in range(5))
    program.section("start the threads, which wait for the mutex")
    _call_mutex(machine, LOCK, context, function, handle)
    machine.load_word(job, (context, JOBS))
    machine.load_word(left, (context, SIZE))
    machine.load_word(other, (context, HELPER))
    machine.set(none, 0)
    machine.place(again)
    machine.advance(left, -1)
    machine.jump_if_equal(left, none, started)
    machine.advance(job, JOB_BYTES)
    machine.offset(handle, job, HANDLE)
    machine.load_word(function, (context, CREATE))
    machine.call(function, handle, none, other, job)
    machine.store_word(machine.result, (stack, 0))
    machine.load_half(status, (stack, 0))
    machine.jump_if_equal(status, none, again)
    machine.store_word(status, (context, REFUSED))
    machine.advance(job, -JOB_BYTES)
    _call_mutex(machine, UNLOCK, context, function, handle)
    machine.load_word(other, (context, JOBS))
    machine.jump(leave)
    program.section("let them go, and do the first job")
    machine.place(started)
    machine.set(handle, 1)
    machine.store_word(handle, (context, GO))
    _call_mutex(machine, UNLOCK, context, function, handle)
    machine.load_word(other, (context, JOBS))
    machine.load_word(function, (context, REPLAY))
    machine.call(function, other)
    machine.store_word(machine.result, (other, STATUS))
    program.section("wait for the threads, the last one first")
    machine.place(leave)
    machine.place(waiting)
    machine.jump_if_equal(job, other, done)
    machine.load_word(function, (context, JOIN))
    machine.load_word(handle, (job, HANDLE))
    machine.call(function, handle, none)
    machine.advance(job, -JOB_BYTES)
    machine.jump(waiting)
    machine.place(done)
    machine.end()
    return _written("crew", CONTEXT_WORDS, target, frame)


@emitter
def emit_helper(target: Target) -> Written:
    """`void *helper(void *job)`: what a thread of `emit_crew` does with its job, once it may."""
    machine, frame = _begin(target)
    program = machine.program
    context, job, none = machine.kept[:3]
    function, mutex = frame.take("function"), frame.take("mutex")
    machine.begin((context, job, none), 64, calls=True)
    machine.move(job, machine.argument)
    machine.load_word(context, (job, CONTEXT))
    for step in (LOCK, UNLOCK):
        _call_mutex(machine, step, context, function, mutex)
    machine.set(none, 0)
    stop = program.new_label()
    machine.load_word(function, (context, GO))
    machine.jump_if_equal(function, none, stop)
    machine.load_word(function, (context, REPLAY))
    machine.call(function, job)
    machine.store_word(machine.result, (job, STATUS))
    machine.place(stop)
    machine.end()
    return _written("helper", JOB_WORDS, target, frame)


def _written(name: str, words: Mapping[str, int], target: Target, frame: Frame) -> Written:
    signature = tuple(Operand(word, word.replace("_", " "), "number") for word in words)
    return Written(name, signature, target, frame, words)


def _begin(target: Target) -> tuple[Machine, Frame]:
    """A machine, and a frame whose registers are none that arguments are passed in."""
    machine = target.scalar_machine()
    frame = Frame(machine)
    while machine.gprs[len(frame.roles)] in machine.arguments:
        frame.take(f"argument {len(frame.roles)}")
    return machine, frame


def _call_mutex(machine: Machine, step: int, context: int, function: int, mutex: int) -> None:
    machine.load_word(function, (context, step))
    machine.load_word(mutex, (context, MUTEX))
    machine.call(function, mutex)
