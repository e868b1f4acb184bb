"""The HTML page of a kernel: complete, escaped, and at work in a browser without a network.

Not here: how the browser is driven (`browser`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import browser
import needs
import pytest
from browser import Browser

import jitgen
from jitgen.inspect import listing
from jitgen.inspect.encoding import fields
from jitgen.inspect.html import page

TARGETS = ["avx2", "avx512", "sve256"]


def kernel_for(target: str) -> jitgen.Kernel:
    """A kernel with every kind of section."""
    return jitgen.brgemm(13, 20, 9, target=target, trans_b=True, epilogue=("bias", "gelu"))


class Page(HTMLParser):
    """The rows of a page: (offset, bytes, text, meaning), and whether its elements nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[tuple[str, str]] = []
        self.rows: list[dict[str, str]] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        kind = values.get("class") or ""
        self.links += [str(values[name]) for name in ("src", "href") if name in values]
        if tag not in ("meta", "link"):
            self.open.append((tag, kind))
        if kind.split()[:1] == ["row"]:
            self.rows.append(dict.fromkeys(("at", "hex", "text", "says"), ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, kind in self.open:
            if self.rows and kind in self.rows[-1]:
                self.rows[-1][kind] += data


@pytest.mark.parametrize("target", TARGETS)
def test_page_holds_every_instruction(target: str) -> None:
    """Offset, bytes, text and meaning of every line; elements nest; nothing is linked."""
    kernel = kernel_for(target)
    found = Page()
    found.feed(page(kernel))
    assert not found.open
    wanted = [
        {"at": f"{x.line.offset:x}", "hex": x.line.code.hex(), "text": x.line.text,
         "says": x.meaning}
        for x in listing.lines(kernel) if x.line.code
    ]  # fmt: skip
    assert found.rows == wanted
    assert found.links == ["data:,"]


def test_text_is_escaped() -> None:
    """An analysis with markup stays text."""
    text = page(kernel_for("avx2"), ['<script>alert("1")</script>', "a & b"])
    assert "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;\na &amp; b" in text
    assert text.count("<script>") == 1


@pytest.mark.parametrize("target", ["avx2", "avx512"])
def test_fields_are_all_bytes(target: str) -> None:
    """The fields of an instruction together are its bytes, each of the size its name says."""
    sizes = {"REX": {1}, "VEX": {2, 3}, "EVEX": {4}, "opcode": {1, 2}, "ModRM": {1}, "SIB": {1},
             "disp8": {1}, "disp8*N": {1}, "disp32": {4}, "imm8": {1}, "imm32": {4},
             "imm64": {8}, "distance": {1, 4}, "prefix": {1}}  # fmt: skip
    seen = set()
    for options in ({}, {"trans_b": True, "ldb": 4000}, {"epilogue": ("bias", "relu_mask")}):
        kernel = jitgen.brgemm(13, 20, 9, target=target, **options)
        for line in kernel.program.lines():
            if line.kind != "instruction" or line.record is None:
                continue
            found = fields(line.record[0], line.code)
            assert b"".join(code for _, code in found) == line.code, line.text
            for name, code in found:
                seen.add(name)
                assert name == "no-operations" or len(code) in sizes[name], (line.text, found)
    assert {"REX", "VEX", "opcode", "ModRM", "SIB", "disp8", "disp32", "imm8", "distance"} <= seen


# ---- in a browser -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser with the page of an AVX2 kernel."""
    if browser.find() is None:
        needs.need("no Chromium is installed")
    folder: Path = tmp_path_factory.mktemp("browser")
    file = folder / "kernel.html"
    file.write_text(page(kernel_for("avx2"), ["predicted <fast>"]))
    with Browser(folder / "profile") as found:
        found.open(file.as_uri())
        yield found


def test_no_request_and_no_error(opened: Browser) -> None:
    """The page asks for nothing but itself, and reports nothing."""
    requests = [
        event["params"]["request"]["url"]
        for event in opened.events if event["method"] == "Network.requestWillBeSent"
    ]  # fmt: skip
    assert [url.rsplit("/", 1)[1] for url in requests if not url.startswith("data:")] == [
        "kernel.html"
    ]
    reports = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    assert [event for event in opened.events if event["method"] in reports] == []
    # the reports would come: a page that is refused something says so
    opened.value("fetch('https://example.org/').catch(() => 0)")
    opened.value("console.error('seen')")
    methods = {event["method"] for event in opened.events}
    assert {"Runtime.consoleAPICalled", "Log.entryAdded"} <= methods


def test_analysis_is_shown(opened: Browser) -> None:
    """As text, not as markup."""
    assert opened.value("document.querySelector('pre').textContent") == "predicted <fast>"


def test_loops_fold(opened: Browser) -> None:
    """A click hides the lines of a loop, another or the Enter key shows them; all at once too."""
    visible = "document.querySelector('.loop .row').checkVisibility()"
    button = ".loop > button"
    assert opened.value(visible) is True
    opened.click(button)
    assert opened.value(visible) is False
    assert opened.value(f"document.querySelector('{button}').ariaExpanded") == "false"
    opened.press("Enter", 13, "\r")  # the click has focused the button
    assert opened.value(visible) is True
    opened.click("[data-all=close]")
    hidden = "[...document.querySelectorAll('.loop .row')].filter(e => e.checkVisibility()).length"
    assert opened.value(hidden) == 0
    opened.click("[data-all=open]")
    rows = opened.value("document.querySelectorAll('.loop .row').length")
    assert opened.value(hidden) == rows > 100


def test_details_of_an_instruction(opened: Browser) -> None:
    """Pointing at one shows meaning and encoding; the arrow keys go on to the next."""
    opened.hover(".row.fma .at")
    shown = json.loads(opened.value(
        "JSON.stringify([...document.querySelectorAll('.found > *')].map(e => e.innerText))"
    ))  # fmt: skip
    text, says, encoding, where = shown
    assert text.startswith("vfmadd231ps ymm0, ")
    assert says == "acc[0,0] += a * b[0]"
    assert encoding.split("\n")[0::2] == ["VEX", "opcode", "ModRM"]
    assert where.endswith("5 bytes")
    opened.value("document.querySelector('.row.fma').focus()")
    opened.press("ArrowDown", 40)
    after = opened.value("document.querySelector('.found .says').textContent")
    assert after == "acc[0,1] += a * b[1]"


def test_registers_light_up(opened: Browser) -> None:
    """Pointing at a register marks all its uses, whatever their width, and no other."""
    opened.hover(".row.fma .r")
    marked = "[...new Set([...document.querySelectorAll('.hot')].map(e => e.textContent))].sort()"
    assert opened.value(marked) == ["xmm0", "ymm0"]
    count = opened.value("document.querySelectorAll('.hot').length")
    assert count == opened.value("document.querySelectorAll('[data-r=v0]').length") > 3
    assert opened.value("document.querySelectorAll('.grid .hot').length") > 0
    opened.hover("h1")
    assert opened.value("document.querySelectorAll('.hot').length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_read(opened: Browser, scheme: str) -> None:
    """Text has a contrast of at least 4.5 to its ground (WCAG 2.2, 1.4.3) in both schemes."""
    opened.prefer(scheme)

    def luminance(variable: str) -> float:
        text = opened.value(
            f"getComputedStyle(document.documentElement).getPropertyValue('--{variable}')"
        ).strip()
        digits = text[1:] if len(text) == 7 else "".join(2 * c for c in text[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    pairs = [("ink", "ground"), ("soft", "ground"), ("hot-ink", "hot"), *(
        (name, ground) for ground in ("panel", "hover")
        for name in ("ink", "soft", "accent", "fma", "load", "broadcast", "store", "branch")
    )]  # fmt: skip
    for text, ground in pairs:
        bright, dim = sorted((luminance(text), luminance(ground)), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5, (scheme, text, ground)
    assert (luminance("ground") < 0.1) == (scheme == "dark")
