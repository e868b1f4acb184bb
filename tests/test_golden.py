"""What is emitted today is what was emitted: every kernel and stream of the corpus, by its hash.

Hashes are rewritten by `python -m pytest tests/test_golden.py --refresh-golden`, and by nothing
else. Not here: the cases (`golden`, `golden_layers`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
from golden import KERNELS
from golden_layers import LAYERS, FullyConnected

from jitgen.emit.routine import Routine
from jitgen.run import cpu
from jitgen.target import parse_target

FOLDER = Path(__file__).parent / "golden"
FAMILIES = (*KERNELS, *LAYERS)
#: Names that a message lists
SHOWN = 10


def path(family: str) -> Path:
    """The file of a family of cases."""
    return FOLDER / f"{family}.json"


def hashes(family: str) -> dict[str, str]:
    """Name -> hashes for TARGETS, parted by blanks, of each case of a family, made now."""
    made: dict[str, list[str]] = {}
    for target in golden.TARGETS:
        for name, value in (_kernels if family in KERNELS else _streams)(family, target):
            made.setdefault(name, []).append(value)
    uneven = [name for name, values in made.items() if len(values) != len(golden.TARGETS)]
    assert not uneven, f"not one of each target: {uneven}"
    return {name: " ".join(values) for name, values in sorted(made.items())}


def stored(family: str) -> dict[str, str]:
    """The same, as it should be."""
    found: dict[str, str] = json.loads(path(family).read_text())
    return found


def write(family: str, made: dict[str, str]) -> None:
    """Make these the hashes of a family."""
    FOLDER.mkdir(exist_ok=True)
    path(family).write_text(json.dumps(made, indent=0) + "\n")


def _kernels(family: str, target: str) -> Iterator[tuple[str, str]]:
    at = parse_target(target)
    with golden.written_down(at):
        for dtype in golden.DTYPES:
            for name, make in KERNELS[family](golden.Draw(family + dtype), dtype, at):
                yield f"{name} {dtype}", golden.kernel_hash(make)


def _streams(family: str, target: str) -> Iterator[tuple[str, str]]:
    with golden.written_down(parse_target(target)) as replayed, np.errstate(all="ignore"):
        for layer, calls in LAYERS[family](golden.Draw(family), target):
            for name, _ in calls:
                assert replayed, f"{layer}: {name} replays nothing"
                yield f"{layer}: {name}", golden.streams_hash(replayed)
                replayed.clear()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bytes_are_those_of_before(family: str, request: pytest.FixtureRequest) -> None:
    made = hashes(family)
    if request.config.getoption("refresh_golden"):
        write(family, made)
        pytest.skip(f"--refresh-golden: {path(family).name} was written anew, not compared")
    text = difference(family, stored(family), made)
    assert not text, text


def difference(family: str, wanted: dict[str, str], made: dict[str, str]) -> str:
    """What differs between two sets of hashes, counted by target; "" if nothing does."""
    found, counts = [], Counter[str]()
    for name in sorted({*wanted, *made}):
        before, after = (each[name].split() if name in each else [] for each in (wanted, made))
        if before and after:
            changed = [
                t for t, b, a in zip(golden.TARGETS, before, after, strict=True) if b != a
            ]
        else:
            changed = ["added" if after else "missing"]
        counts.update(changed)
        if changed:
            found.append(f"  {name} ({', '.join(changed)})")
    if not found:
        return ""
    by_target = ", ".join(f"{target} {count}" for target, count in counts.items())
    more = [f"  ... and {len(found) - SHOWN} more"] * (len(found) > SHOWN)
    return "\n".join([
        f"{family}: {len(found)} of {len(made)} cases differ from {path(family).name} "
        f"({by_target}):",
        *found[:SHOWN], *more,
        "If every one of them is meant to: python -m pytest tests/test_golden.py --refresh-golden",
    ])  # fmt: skip


def test_files_are_those_of_the_families_and_hold_enough() -> None:
    files = {path.stem for path in FOLDER.iterdir()}
    assert files == set(FAMILIES)
    count = {family: len(stored(family)) * len(golden.TARGETS) for family in files}
    assert sum(count[family] for family in KERNELS) >= 2500
    assert sum(count[family] for family in LAYERS) >= 1000
    kernels = [value for name in KERNELS for value in stored(name).values()]
    refused = sum(value.split().count(golden.REFUSED) for value in kernels)
    assert refused < 0.05 * len(kernels) * len(golden.TARGETS)


def test_one_changed_byte_of_a_kernel_is_told_by_its_name(monkeypatch: Any) -> None:
    code_of = golden.code_of
    changed = code_of(golden.emit_member(parse_target("sve256")))

    def mutated(emitted: Any) -> bytes:
        code = code_of(emitted)
        return code[:-1] + bytes([code[-1] ^ 1]) if code == changed else code

    monkeypatch.setattr(golden, "code_of", mutated)
    text = difference("drivers", stored("drivers"), hashes("drivers"))
    assert text.startswith("drivers: 1 of ") and "(sve256 1):\n  member f32 (sve256)\n" in text
    assert "--refresh-golden" in text


def test_one_changed_record_or_word_of_a_stream_is_told(monkeypatch: Any) -> None:
    layer = FullyConnected(3, 20, 40, target="avx2", threads=2)
    stream = layer.stream()
    whole = golden.streams_hash([(stream, {}, None)])
    assert golden.streams_hash([(stream, {}, list(stream.slices))]) == whole
    records = [words.copy() for words in stream.slices]
    records[0][2] ^= 1
    seen = {whole, golden.streams_hash([(stream, {}, records)])}
    first, *others = stream.calls
    changed = first.code[:-1] + bytes([first.code[-1] ^ 1])
    for call in (
        first._replace(routine=Routine("changed", (), first.routine.target, changed)),
        first._replace(words=(first.words[0]._replace(shift=1), *first.words[1:])),
        first._replace(words=(first.words[0]._replace(base=1), *first.words[1:])),
        first._replace(fixed=(("count", 77),)),
    ):
        vars(stream)["calls"] = (call, *others)
        seen.add(golden.streams_hash([(stream, {}, None)]))
    assert len(seen) == 6


def test_missing_and_added_cases_are_told() -> None:
    values = " ".join(map(str, range(len(golden.TARGETS))))
    text = difference("rows", {"old": values}, {"new": values})
    assert "  new (added)\n  old (missing)\n" in text and "(added 1, missing 1)" in text
    assert difference("rows", {"old": values}, {"old": values}) == ""


def test_a_layer_that_asks_for_the_host_is_told(monkeypatch: Any) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    avx2 = parse_target("avx2")
    with golden.written_down(avx2), pytest.raises(AssertionError, match="depends on the host"):
        cpu.targets()
    with golden.written_down(avx2), pytest.raises(AssertionError, match="depends on the host"):
        FullyConnected(3, 4, 5)
    with golden.written_down(avx2):
        assert FullyConnected(3, 4, 5, threads=1).layer.target is avx2
