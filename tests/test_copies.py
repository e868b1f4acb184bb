"""Copies and pickles of every public object, unused and used: the copy computes the same bits.

Not here: attributes that cannot be assigned (`test_read_only`).
"""

from __future__ import annotations

import copy
import itertools
import pickle
import threading
from collections.abc import Callable
from typing import Any

import copied
import numpy as np
import pytest
from child import run_child
from copied import CUSTOM, MAKE, numbers, train, use

import jitgen
from jitgen import Adam, Convolution, FullyConnected, Gru, Lstm, Mlp, Rnn, Sgd
from jitgen.gemm import kernel as kernel_module
from jitgen.run import cpu
from jitgen.target import TARGETS, sve

HERE = [name for name, why in cpu.targets().items() if not why]
pytestmark = pytest.mark.skipif(not HERE, reason="no target runs on this CPU")
WAYS: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy, "deepcopy": copy.deepcopy,
    **{f"pickle {p}": lambda x, p=p: pickle.loads(pickle.dumps(x, p)) for p in range(2, 6)},
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MAKE)
def test_a_copy_computes_the_same(name: str, way: str) -> None:
    for times in range(3):
        thing = MAKE[name]()
        for _ in range(times):
            use(thing)
        other = WAYS[way](thing)
        assert type(other) is type(thing)
        if not (way == "copy" and isinstance(thing, (Sgd, Adam))):  # it has the same parameters
            assert use(other) == use(thing)
            again = WAYS[way](other)  # a copy of a copy
            assert use(again) == use(other)


def test_other_processes() -> None:
    """Used objects go to processes that begin anew; so do those that they make there come back."""
    run_child(
        """
        import multiprocessing
        from copied import MAKE, restored, use, used

        if __name__ == "__main__":
            with multiprocessing.get_context("spawn").Pool(2) as pool:
                things = {name: make() for name, make in MAKE.items()}
                for thing in things.values():
                    use(thing)
                there = dict(pool.map(used, things.items()))
                for name, thing in things.items():
                    assert there[name] == use(thing), name
                for name, found in pool.map(restored, MAKE):
                    assert found == use(MAKE[name]()), name
        """,
        timeout=300,
    )


def test_targets_are_themselves() -> None:
    for target in (*TARGETS.values(), sve(384)):
        for way, make in WAYS.items():
            assert make(target) is target, way
    mine = WAYS["pickle 5"](CUSTOM)
    assert (mine.name, mine.rates) == (CUSTOM.name, CUSTOM.rates)
    impostor = copy.deepcopy(CUSTOM)
    object.__setattr__(impostor, "name", "avx2")
    assert WAYS["pickle 5"](impostor).rates == CUSTOM.rates


def test_targets_of_other_machines() -> None:
    """What cannot run here comes back and says so when it is called."""
    name = "avx2" if "sve" in HERE[0] else "sve256"
    layer = copy.deepcopy(FullyConnected(4, 6, 5, target=name, threads=3))
    assert (layer.layer.target, layer.layer.threads) == (TARGETS[name], 3)
    with pytest.raises(RuntimeError, match=f"cannot run kernels for {name}"):
        layer.forward(numbers((4, 6)), numbers((5, 6)), numbers((5,)))


def test_a_pickled_kernel_holds_no_code() -> None:
    kernel = jitgen.brgemm(8, 8, 8)
    assert kernel.code[:16] not in pickle.dumps(kernel)
    assert copy.copy(kernel) is copy.deepcopy(kernel) is kernel
    # the request of a pickle is checked as any other
    values = {**vars(kernel.spec), "lda": 4}
    with pytest.raises(ValueError, match="lda=4 is smaller"):
        kernel_module._request(jitgen.KernelSpec(**values), kernel.target, (), "jitgen")


def test_what_belongs_to_the_process_is_refused() -> None:
    kernel, layer = jitgen.brgemm(4, 4, 4), FullyConnected(4, 4, 4)
    a = numbers((4, 4))
    bound = kernel.bind(a, a.copy(), a.copy())
    layer.forward(a, a, a[0].copy())
    (run,) = layer._own().runs.values()
    for thing in (bound, kernel._loaded, run, run._team, run.stream):
        for way, make in WAYS.items():
            with pytest.raises(TypeError, match="belongs to its process"):
                make(thing)
            assert way


def test_nothing_is_printed_when_half_made_objects_die() -> None:
    run_child(
        """
        import copy, gc, sys
        import numpy as np
        import jitgen
        from jitgen.run import loader, threads

        heard = []
        sys.unraisablehook = heard.append
        kernel = jitgen.brgemm(4, 4, 4)
        kernel.address
        try:
            copy.deepcopy(kernel._loaded)
        except TypeError:
            pass
        for kind in (loader.Code, loader.Arena, loader.Pages, loader.FileArena, threads.Barrier):
            kind.__new__(kind)
        gc.collect()
        assert not heard, heard
        """
    )


def test_loaded_panels_begin_at_cache_lines() -> None:
    """A pickle's arrays begin anywhere; kernels would read across lines."""
    for name in ("Blocked", "PackedWeights", "PackedFilter", "PackedRecurrent"):
        thing = MAKE[name]()
        for way in ("deepcopy", "pickle 2", "pickle 5"):
            other = WAYS[way](thing)
            arrays = {
                "Blocked": lambda p: [p.array],
                "PackedWeights": lambda p: [p.forward.array, p.backward.array],
                "PackedFilter": lambda p: [p.forward, p.backward],
                "PackedRecurrent": lambda p: [a for one in p.panels for a in one.values()],
            }[name](other)
            assert not any(a.__array_interface__["data"][0] % 64 for a in arrays if a.size), name


def test_parameters_stay_those_of_the_network() -> None:
    """A network and its optimizer in one pickle train on as the originals do."""
    x, labels = numbers((4, 5)), np.arange(4) % 3
    for make in (Sgd, Adam):
        network = Mlp(4, (5, 33, 3))
        optimizer = make(network.parameters, 0.05)
        network.train_step(x, labels, optimizer)
        others = [WAYS[way]((network, optimizer)) for way in WAYS if way != "copy"]
        losses = [network.train_step(x, labels, optimizer) for _ in range(5)]
        assert losses[-1] < losses[0]
        for net, opt in others:
            assert all(p is q for p, q in zip(net.parameters, opt.parameters, strict=True))
            assert losses == [net.train_step(x, labels, opt) for _ in range(5)]


def test_a_copied_optimizer_has_its_own_state() -> None:
    """copy.copy updates the same arrays and sums up by itself."""
    for make in (Sgd, Adam):
        parameter, gradient = numbers((50,)), numbers((50,), 1)
        first = make([parameter], 0.1, **({"momentum": 0.9} if make is Sgd else {}))
        first.step([gradient])
        begin, second = parameter.copy(), copy.copy(first)
        assert second.parameters[0] is parameter
        second.step([gradient])
        end = parameter.copy()
        parameter[:] = begin
        first.step([gradient])
        np.testing.assert_array_equal(parameter, end)


def test_out_of_band_parameters_are_not_written() -> None:
    """Protocol 5 may bring arrays in memory that is read-only."""
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(Sgd([numbers((8,))], 0.1), 5, buffer_callback=buffers.append)
    other = pickle.loads(data, buffers=[bytes(b) for b in buffers])
    with pytest.raises(ValueError, match="read-only"):
        other.step([numbers((8,))])


RECURRENT: list[Callable[[], Any]] = [
    lambda: Lstm(3, 7, 5, 20, direction="bidirectional", peephole=True), lambda: Gru(3, 7, 5, 20),
    lambda: Gru(3, 7, 5, 20, reset="before"), lambda: Rnn(3, 7, 5, 20),
]  # fmt: skip


def backward(layer: Any) -> list[bytes]:
    return [a.tobytes() for a in layer.backward(numbers(layer.shapes["y"], 99))]


@pytest.mark.parametrize("make", RECURRENT)
@pytest.mark.parametrize("way", WAYS)
def test_what_training_kept(make: Callable[[], Any], way: str) -> None:
    """The copy can go backward, whatever the original does meanwhile, and the other way round."""
    layer = make()
    train(layer, 0)
    other = WAYS[way](layer)
    wanted = backward(layer)
    train(layer, 50)
    assert backward(other) == wanted
    second = backward(layer)
    train(other, 70)
    backward(other)
    assert backward(layer) == second != wanted


def test_an_interrupted_pass_leaves_nothing() -> None:
    """Its memory holds parts of two passes."""
    layer = Gru(3, 7, 5, 20)
    train(layer, 0)

    def stop(*how: Any) -> Any:
        raise KeyboardInterrupt

    layer._run = stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        train(layer, 50)
    del layer._run
    with pytest.raises(ValueError, match="needs a forward pass"):
        backward(layer)


def test_copies_while_another_thread_trains() -> None:
    """A copy has the gradients of a whole pass, or none."""
    layer = Lstm(3, 7, 5, 20)
    known = []
    for seed in (0, 50):
        train(layer, seed)
        known.append(backward(layer))
    done, failures, good = threading.Event(), [], 0

    def work() -> None:
        for turn in itertools.count():
            if done.is_set():
                return
            for seed in (0, 50):
                train(layer, seed)
            if turn % 8 == 0:
                # on busy CPUs others run only while a pass does: let them see a whole one, too
                done.wait(0.001)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(100):
            for way in ("copy", "deepcopy", "pickle 5"):
                other = WAYS[way](layer)
                try:
                    found = backward(other)
                except ValueError as error:
                    assert "needs a forward pass" in str(error)
                else:
                    good += 1
                    if found not in known:
                        failures.append(way)
    finally:
        done.set()
        thread.join()
    assert not failures
    assert good


@pytest.mark.parametrize("name", ["FullyConnected", "Convolution", "MaxPool", "Gru"])
def test_copies_while_another_thread_computes(name: str) -> None:
    """Also in the layer's first calls, in which it fills what it remembers."""
    wanted = use(MAKE[name]())
    for _ in range(10):
        layer, found = MAKE[name](), []
        thread = threading.Thread(target=lambda at=layer, to=found: to.append(use(at)))
        thread.start()
        others = [WAYS[way](layer) for _ in range(20) for way in ("deepcopy", "pickle 5")]
        thread.join()
        assert found == [wanted]
        assert use(others[0]) == use(others[-1]) == wanted


def test_copies_do_not_share_what_a_layer_remembers() -> None:
    layer = Convolution(1, 8, 9, 9, 16, 3)
    use(layer)
    other = copy.copy(layer)
    assert layer._sizes and not other._sizes
    assert other._choices == layer._choices and other._choices is not layer._choices


def test_names_of_the_table() -> None:
    """Every public class of layers, optimizers and packed weights is in the table."""
    things = [make() for make in MAKE.values()]
    assert all(any(isinstance(thing, kind) for thing in things) for kind in copied._USE)


@pytest.mark.parametrize("name", MAKE)
def test_an_object_says_what_it_is(name: str) -> None:
    thing = MAKE[name]()
    text = repr(thing)
    assert type(thing).__name__.strip("_") in text or "Convolution" in text
    assert "\n" not in text and "array(" not in text and "object at 0x" not in text
    if text[0] == "<":
        assert len(text) < 120
    assert repr(copy.deepcopy(thing)) == text
