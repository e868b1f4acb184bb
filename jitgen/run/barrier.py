"""A barrier as machine code: threads that wait for one another, with nothing but memory.

Its state is a cache line that is zero at first, and good for the next team when all have passed:
how many have come, and how many times all had. A thread waits in a loop, and from a while on lets
others run between its looks, so that more threads than CPUs come to an end too. Not here: who waits
for whom (`jitgen.run.replay`, `jitgen.objects.entry`), and the barriers of teams that Python makes
(`jitgen.run.threads`).
"""

from __future__ import annotations

from jitgen.emit.frame import Frame
from jitgen.emit.routine import Operand, Written, emitter
from jitgen.target import Target

#: Words of the argument, in bytes
STATE, THREADS = 0, 8
ARGUMENT_BYTES = 16
WORDS = {"state": STATE, "threads": THREADS}
#: Words of the state, and its bytes, a cache line
COME, PASSED = 0, 8
STATE_BYTES = 64
#: Looks before a thread first gives way (ten microseconds or so: what a barrier takes where every
#: thread has a CPU and an even share), and between that and the next time
FIRST_LOOKS, LOOKS = 300, 20
_SIGNATURE = (
    Operand("state", "how many have come, how often all had", "data"),
    Operand("threads", "how many wait for one another", "number"),
)


@emitter
def emit_barrier(target: Target) -> Written:
    """`int64_t barrier(const uint64_t argument[])`: returns 0 when as many threads as the argument
    says have called it with this state. What they stored before is seen by all."""
    machine = target.scalar_machine()
    program, frame = machine.program, Frame(machine)
    state, passed, left = machine.kept[:3]
    others = [r for r in machine.gprs if r not in (*machine.arguments, *machine.kept)]
    threads, come, now = others[:3]
    wait, again, done = (program.new_label() for _ in range(3))
    program.section("come")
    machine.begin((state, passed, left))
    machine.load_word(state, (machine.argument, STATE))
    machine.load_word(threads, (machine.argument, THREADS))
    machine.load_acquire(passed, (state, PASSED))
    machine.set(left, 1)
    machine.fetch_add(come, state, left)
    machine.advance(come, 1)
    machine.jump_if_different(come, threads, wait)
    program.section("the last one: begin anew, and let all go")
    machine.set(come, 0)
    machine.store_word(come, (state, COME))
    machine.advance(passed, 1)
    machine.store_release(passed, (state, PASSED))
    machine.jump(done)
    program.section("wait: look again and again, then give way between the looks")
    machine.place(wait)
    machine.set(left, FIRST_LOOKS)
    machine.place(again)
    machine.load_acquire(now, (state, PASSED))
    machine.jump_if_different(now, passed, done)
    machine.pause()
    machine.count_down(left, again)
    machine.give_way()
    machine.set(left, LOOKS)
    machine.jump(again)
    machine.place(done)
    machine.end()
    return Written("barrier", _SIGNATURE, target, frame, WORDS)
