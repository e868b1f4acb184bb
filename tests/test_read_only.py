"""What the memory of machine code depends on cannot be assigned; what can be changed is checked.

Not here: copies (`test_copies`), arrays of the wrong kind (`test_bad_input`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from child import run_child
from copied import MAKE, numbers, use

import jitgen
from jitgen import FullyConnected, Lstm, Mlp, Sgd
from jitgen.run import cpu

HERE = [name for name, why in cpu.targets().items() if not why]
pytestmark = pytest.mark.skipif(not HERE, reason="no target runs on this CPU")
#: Numbers that a training loop changes
SETTABLE = {
    "Sgd": {"lr", "momentum", "weight_decay"}, "Adam": {"lr", "betas", "eps", "weight_decay"}
}  # fmt: skip


def public(thing: Any) -> list[str]:
    return [name for name in dir(thing) if name[0] != "_"]


@pytest.mark.parametrize("name", MAKE)
def test_nothing_is_assigned(name: str) -> None:
    """Every public name of an object, and of what a name leads to: refused, and nothing changed."""
    thing = MAKE[name]()
    parts = [thing, *(getattr(thing, n) for n in ("spec", "target", "layer", "conv", "forward")
                      if hasattr(thing, n) and not callable(getattr(thing, n)))]  # fmt: skip
    for part in parts:
        if isinstance(part, np.ndarray):
            continue
        for attribute in public(part):
            if attribute in SETTABLE.get(name, ()):
                continue
            for value in (None, 1 << 20, numbers((2, 2))):
                with pytest.raises(AttributeError, match=rf"{attribute}['\\ ]"):
                    setattr(part, attribute, value)
            with pytest.raises(AttributeError, match=rf"{attribute}['\\ ]"):
                delattr(part, attribute)
    assert use(thing) == use(MAKE[name]())


def test_assigned_numbers_of_optimizers_count() -> None:
    for name, names in SETTABLE.items():
        thing = MAKE[name]()
        for attribute in names:
            value = getattr(thing, attribute)
            setattr(thing, attribute, value)
        assert use(thing) == use(MAKE[name]())
    p = np.ones(3, np.float32)
    optimizer = Sgd([p], 0.1)
    optimizer.lr = 0.5
    optimizer.step([np.ones(3, np.float32)])
    assert p.tolist() == [0.5] * 3


def test_nothing_is_made_twice() -> None:
    """__init__ of an object that is there would give streams of one size the checks of another."""
    layer = FullyConnected(4, 6, 5)
    with pytest.raises(AttributeError, match="read-only"):
        layer.__init__(40, 60, 50)  # type: ignore[misc]
    lstm = Lstm(2, 3, 4, 5)
    with pytest.raises(AttributeError, match="read-only"):
        lstm.__init__(20, 30, 40, 50)  # type: ignore[misc]
    assert lstm.shapes["x"] == (3, 2, 4)


def test_a_bound_kernel_keeps_its_arrays() -> None:
    a = numbers((4, 4))
    bound = jitgen.brgemm(4, 4, 4).bind(a, a.copy(), a.copy())
    for name in ("keep", "args_struct", "func", "args", "keywords"):
        with pytest.raises(AttributeError):
            setattr(bound, name, None)
        with pytest.raises(AttributeError):
            delattr(bound, name)
    bound()


def test_containers_take_nothing() -> None:
    network, lstm = Mlp(4, (5, 6, 3)), Lstm(2, 3, 4, 5)
    optimizer = Sgd(network.parameters, 0.1)
    stream = FullyConnected(4, 6, 5).stream()
    for container, key in (
        (network.layers, 0), (network.weights, 0), (network.biases, 0), (optimizer.parameters, 0),
        (lstm.shapes, "x"), (stream.calls, 0), (stream.parts, 0), (stream.slices, 0),
        (stream.tensors, 0),
    ):  # fmt: skip
        with pytest.raises(TypeError, match="does not support item assignment"):
            container[key] = container[key]  # type: ignore[index]
    with pytest.raises(ValueError, match="read-only"):
        stream.slices[0][:] = 0


def test_arrays_that_change_in_place() -> None:
    """Whoever shares an array may give it another size, also behind NumPy's back (refcheck)."""
    run_child(
        """
        import numpy as np
        from copied import numbers, train
        from jitgen import Mlp
        from jitgen import Adam, Sgd
        from jitgen import Gru, Lstm

        def refused(call, *words):
            try:
                call()
            except ValueError as error:
                assert all(word in str(error) for word in words), error
            else:
                raise AssertionError(words)

        for make in (Sgd, Adam):
            for shape in ((3,), (9_000_000,), (2, 3), (3, 2)):
                p = np.ones((2, 3), np.float32).copy()
                optimizer = make([p], 0.1)
                optimizer.step([np.ones_like(p)])
                p.resize(shape, refcheck=False)
                if shape == (2, 3):
                    optimizer.step([np.ones_like(p)])
                else:
                    refused(lambda: optimizer.step([np.ones_like(p)]), "s[0] has shape")
                    wide = np.ones((2, 3), np.float32)
                    refused(lambda: optimizer.step([wide]), "parameters[0] has shape")
            p = np.ones(6, np.float32)
            optimizer = make([p], 0.1)
            p.flags.writeable = False
            refused(lambda: optimizer.step([np.ones(6, np.float32)]), "parameters[0] is read-only")

        network = Mlp(4, (5, 6, 3))
        network.weights[0].resize((60, 50), refcheck=False)
        refused(lambda: network.forward(numbers((4, 5))), "w has shape (60, 50)")

        for make in (Lstm, Gru):
            for name in ("x", "w", "r", "y"):
                for shape in ((1,), (900_000,)):
                    layer = make(2, 3, 4, 5, bias=False)
                    given = {n: numbers(layer.shapes[n]) for n in ("x", "w", "r")}
                    given["y"] = layer.forward(*given.values(), training=True)[0]
                    given[name].resize(shape, refcheck=False)
                    dy = numbers(layer.shapes["y"])
                    refused(lambda: layer.backward(dy), f"{name} had ", "in the forward pass")
            layer = make(2, 3, 4, 5, bias=False)
            x, w, r = (numbers(layer.shapes[n]) for n in ("x", "w", "r"))
            layer.forward(x, w, r, training=True)
            wanted = layer.backward(dy)
            x.shape = w.shape = r.shape = (-1,)  # the same memory
            for one, two in zip(layer.backward(dy), wanted):
                assert one is two is None or (one == two).all()

            x, w, r = (numbers(layer.shapes[n]) for n in ("x", "w", "r"))
            packed = layer.pack_weights(w, r)
            wanted = layer.forward(x, packed, None)[0]
            packed.panels[0]["y"] = packed.panels[0]["x"] = np.zeros(1, np.float32)
            assert (layer.forward(x, packed, None)[0] == wanted).all()
            for array in packed.panels[0].values():
                if array.size > 1:
                    array.shape = (1, -1)
            refused(lambda: layer.forward(x, packed, None), "w (packed,")
        """
    )
