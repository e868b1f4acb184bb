"""Finds every public function, and tries bad values at every argument of each.

A case is right if it is refused by TypeError or ValueError with argument and value in its message,
or gives what the plain value gives. Run as a child process (`main`), which tells each case before
it tries it. Not here: the calls (`door_calls`, `door_layers`), the values (`door_values`).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import json
import os
import pkgutil
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import door_layers  # noqa: F401 (adds to CALLS)
import numpy as np
from door_calls import CALLS, Call
from door_values import NO, VALUES, Array, variants

import jitgen
from jitgen import doors, primitives

#: Modules of `jitgen.primitives` that only layers use, which have checked what they pass on
INSIDE = (
    "conv.axis", "conv.choosing", "conv.cost", "conv.depthwise", "conv.layouts", "conv.parts",
    "conv.pooling", "conv.streams", "conv.tiles", "conv.weights", "conv.windows",
    "conv.winograd", "fc.streams", "layers.arrays", "layers.base", "layers.described",
    "layers.elementwise", "layers.exporting", "layers.images", "layers.passes",
    "layers.sequences", "nest.along", "nest.batch", "nest.fit", "nest.gemm", "nest.limits",
    "nest.report", "nest.rows", "nest.run", "nest.shown", "nest.tables", "nest.traffic",
    "rnn.arguments", "rnn.backward", "rnn.biases", "rnn.lengths", "rnn.steps", "rnn.streams",
    "rows.streams",
)  # fmt: skip
PREFIX = "jitgen.primitives."
#: What is public but in no module that is walked: docs name it
DOCUMENTED = (
    "jitgen.debug.enable", "jitgen.debug.disable", "jitgen.debug.enable_from_environment",
    "jitgen.run.disk.enable", "jitgen.run.disk.disable", "jitgen.analysis.analyze",
    "jitgen.analysis.plot.check_file", "jitgen.analysis.plot.roofline",
    "jitgen.inspect.formats.render", "jitgen.cli.main", "jitgen.run.cpu.choose",
    "jitgen.gemm.spec.make_spec", "jitgen.gemm.spec.make_epilogue", "jitgen.target.parse_target",
    "jitgen.run.threads.check_threads", "jitgen.analysis.measure.Problem",
    "jitgen.analysis.measure.empty_kernel", "jitgen.analysis.measure.peak_kernel",
    "jitgen.analysis.measure.emit_peak", "jitgen.analysis.measure.interleave",
    "jitgen.analysis.measure.generation",
)  # fmt: skip
_INNER = "made by the module itself, which knows what it holds"
#: Public callables that are not tried, each with its reason
LEFT_OUT = {
    "jitgen.Bound": "made by Kernel.bind, which has checked the arrays",
    "jitgen.Kernel": "holds machine code, of which nobody can say whether it is right: brgemm",
    "jitgen.KernelSpec": "the result of make_spec, which checks; no public function takes one",
    "jitgen.KernelSpec.has": "any name that no step has is rightly in no epilogue",
    "jitgen.Plan": "the result of make_plan, to be read; no public function takes one",
    "jitgen.Plan.tiles": "of a Plan",
    "jitgen.Target.facts": "takes a Machine, which is no public class",
    "jitgen.primitives.nest.loops.Iterations": "the result of iterate, to be read",
    "jitgen.primitives.nest.loops.check_order": _INNER,
    "jitgen.primitives.nest.loops.check_sums": _INNER,
    "jitgen.primitives.train.optimizers.Optimizer": "the base of Sgd and Adam",
    "jitgen.primitives.rnn.kept.Kept": _INNER, "jitgen.primitives.rnn.kept.Kept.check": _INNER,
    "jitgen.primitives.nest.stream.Calls": _INNER,
    "jitgen.primitives.nest.stream.Part": "made by Nest, which checks",
    "jitgen.primitives.nest.stream.Part.all": _INNER,
    "jitgen.primitives.nest.stream.Part.refs": _INNER,
    "jitgen.primitives.nest.stream.Ref": "made by Access",
    "jitgen.primitives.nest.bounds.PartBounds": "a part of a RunBounds, to be read",
    "jitgen.primitives.nest.bounds.RunBounds": "the result of Model.predict, to be read",
    "jitgen.primitives.nest.bounds.RunBounds.percent": "of a RunBounds",
    "jitgen.primitives.nest.bounds.RunBounds.seconds": "of a RunBounds",
    "jitgen.primitives.nest.cost.Cost": "the result of cost, to be read",
    "jitgen.primitives.nest.cost.Work": "what cost makes, and checks before",
    "jitgen.primitives.nest.cost.Work.cost": "of a Work",
    "jitgen.primitives.nest.cost.Work.count": "of a Work",
    "jitgen.primitives.nest.tensor.Access.also": "as Tensor.at, which checks",
    "jitgen.primitives.nest.tensor.Access.steps": _INNER,
    "jitgen.primitives.nest.tensor.Access": "made by Tensor.at, which checks",
    "jitgen.primitives.nest.tensor.Access.axis": _INNER,
    "jitgen.primitives.nest.tensor.Access.moves": _INNER,
    "jitgen.primitives.nest.tensor.Access.without": _INNER,
    "jitgen.primitives.nest.tensor.Access.ref": "takes the loops of a Nest, which checks them",
}  # fmt: skip
#: What stands for a value in a message, of which no more needs to be said
WORDS = ("overlaps", "is read-only", "is missing", "is given", "is empty")


# ---- the walk -----------------------------------------------------------------------------------


def public() -> Iterator[tuple[str, Any]]:
    """Every public callable by name: functions, classes (their making), methods."""
    for name in set(jitgen.__all__) - set(primitives.__all__):
        yield from _of(f"jitgen.{name}", getattr(jitgen, name))
    for key in DOCUMENTED:
        module, _, name = key.rpartition(".")
        yield from _of(key, getattr(importlib.import_module(module), name))
    for found in pkgutil.walk_packages(primitives.__path__, PREFIX):
        if found.ispkg or found.name.removeprefix(PREFIX) in INSIDE:
            continue
        module = importlib.import_module(found.name)
        for name, value in vars(module).items():
            if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__:
                yield from _of(f"{module.__name__}.{name}", value)


def _of(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if inspect.ismodule(value) or not callable(value):
        return
    yield key, value
    if not inspect.isclass(value):
        return
    for name, method in inspect.getmembers(value, callable):
        ours = (getattr(method, "__module__", None) or "").split(".")[0] == "jitgen"
        if ours and (not name.startswith("_") or name == "__call__") and inspect.isroutine(method):
            yield f"{key}.{name}", method


def faults_of_the_table() -> list[str]:
    """What is public and has neither call nor reason, and the other way round."""
    known = dict(public())
    faults = [f"{key}: no call and no reason" for key in known if key not in (*CALLS, *LEFT_OUT)]
    faults += [f"{key}: left out, but it is not there" for key in LEFT_OUT if key not in known]
    faults += [f"{name}: inside, but it is not there" for name in INSIDE
               if importlib.util.find_spec(PREFIX + name) is None]  # fmt: skip
    for key, value in known.items():
        if key in CALLS:
            wanted = {
                p.name for p in inspect.signature(value).parameters.values()
                if p.name != "self" and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
            }  # fmt: skip
            missing = wanted - set(CALLS[key].arguments())
            faults += [f"{key}: argument {name} is not tried" for name in sorted(missing)]
    return faults


# ---- cases --------------------------------------------------------------------------------------


def cases(call: Call) -> Iterator[tuple[str, str, dict[str, Any], Any]]:
    """Argument, name of the value, arguments, plain value (NO: the value is never right)."""
    for argument, kind in call.kinds.items():
        if argument in call.left_out:
            continue
        for name, make in VALUES.items():
            arguments = call.arguments()
            arguments[argument] = make()
            yield argument, name, arguments, kind(make())
        right = call.arguments()[argument]
        if isinstance(kind, Array) and isinstance(right, np.ndarray):
            for name, value, fine in variants(right, kind.output):
                plain = np.array(value) if fine or name in kind.also else NO
                yield argument, name, {**call.arguments(), argument: value}, plain
        if isinstance(kind, Array) and kind.output and isinstance(right, np.ndarray):
            for other, given in call.arguments().items():
                # offsets are copied when a kernel is bound
                if isinstance(given, np.ndarray) and other != argument and "offset" not in other:
                    yield argument, f"overlaps {other}", *_overlapping(call, argument, other)


def _overlapping(call: Call, argument: str, other: str) -> tuple[dict[str, Any], Any]:
    """Arguments of which two share some bytes."""
    arguments = call.arguments()
    memory = np.zeros(arguments[argument].nbytes + arguments[other].nbytes, np.uint8)
    for name, begin in ((other, 0), (argument, arguments[other].itemsize)):
        array = arguments[name]
        part = memory[begin : begin + array.nbytes].view(array.dtype)
        arguments[name] = part.reshape(array.shape)
    return arguments, NO


def facts(value: Any) -> Any:
    """What two equal results have in common."""
    if isinstance(value, np.ndarray):
        return value.shape, str(value.dtype), np.asarray(value).tobytes()
    if isinstance(value, (tuple, list)):
        return [facts(each) for each in value]
    if isinstance(value, dict):
        return {key: facts(each) for key, each in value.items()}
    if isinstance(value, jitgen.Kernel):
        return repr(value.spec), value.code
    where = type(value).__module__
    if dataclasses.is_dataclass(value) and not where.startswith("jitgen.isa."):
        return [facts(getattr(value, f.name)) for f in dataclasses.fields(value)]
    if where.startswith(PREFIX):
        return {key: facts(each) for key, each in vars(value).items() if key[0] != "_"}
    if isinstance(value, int):
        return type(value).__name__, hex(value)  # repr has a limit
    plain = isinstance(value, (float, str, bytes, type(None), np.generic))
    return repr(value) if plain else type(value).__name__


def told(error: Exception, words: list[str], value: Any) -> str:
    """What the message lacks, or ""."""
    message = str(error)
    if not any(re.search(rf"(?<![A-Za-z_]){re.escape(w)}(?![A-Za-z_])", message) for w in words):
        return "the argument's name"
    forms = [doors.shown(value), type(value).__name__, *WORDS]
    if isinstance(value, np.ndarray):
        forms += [str(value.shape), str(value.dtype), *map(str, value.strides)]
        forms += [str(value)] if value.size < 9 else []
    elif isinstance(value, (int, str, float, np.generic)):
        forms += [str(value)] if str is not type(value) and _short(value) else []
    if isinstance(value, (tuple, list, range, np.ndarray)) and np.iterable(value):
        forms += [f" {len(value)}", f"({len(value)},", doors.shown(tuple(value))]
        for each in list(value)[:9]:
            forms += [doors.shown(each), type(each).__name__]
            forms += [str(each)] if isinstance(each, np.generic) else []
    if inspect.isgenerator(value):
        forms += ["0", "1", "(2,"]  # its elements and their number
    return "" if any(form in message for form in forms if form) else "the value"


def _short(value: Any) -> bool:
    return not isinstance(value, int) or value.bit_length() < 200


def attempt(call: Call, argument: str, arguments: dict[str, Any], plain: Any) -> str:
    """Try a case; "" if it is right, else a word on what is wrong."""
    value = arguments[argument]
    words = [argument, *call.alias.get(argument, argument).split()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = call.function(**arguments)
    except (TypeError, ValueError) as error:
        lacks = told(error, words, value)
        return f"inner: {type(error).__name__}: {error} (lacks {lacks})" if lacks else ""
    except Exception as error:
        return f"inner: {type(error).__name__}: {error}"
    if plain is NO:
        return "silent: accepted"
    if type(plain) is type(value) and not isinstance(value, np.ndarray):
        return ""
    want = call.function(**{**call.arguments(), argument: plain})
    return "" if facts(result) == facts(want) else "silent: another result than the plain value's"


def main(keys: list[str]) -> None:
    """Try the calls of these names; a line for each case before it, and one for each fault."""
    out = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115

    def tell(**line: Any) -> None:
        os.write(out, json.dumps(line).encode() + b"\n")

    for key in keys:
        call = CALLS[key]
        arguments = call.arguments()
        facts(call.function(**arguments))  # works as it is
        for argument, name, given, plain in cases(call):
            tell(case=f"{key}({argument}={name})")
            wrong = attempt(call, argument, given, plain)
            if wrong:
                tell(wrong=wrong)
    tell(done=True)
