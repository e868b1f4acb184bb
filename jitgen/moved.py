"""Modules under their old names, for one release; a checkout's `isa` and `primitives`.

    import jitgen.kernel          # DeprecationWarning: it is jitgen.gemm.kernel now
    import primitives             # in a checkout: the very module jitgen.primitives

Either way what is imported is the module itself, never a second copy of it. Names in a module that
went to another one (`Rates` to `jitgen.target`) are found there only.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType

#: New package: the modules that moved there from the package before it, as old=new where the name
#: changed too
_ROOMS = {
    "jitgen.emit": ("jitgen", "frame functions derivatives copying"),
    "jitgen.gemm": ("jitgen", "spec plan tiles generator epilogue operands kernel"),
    "jitgen.kernels": (
        "jitgen", "pack elementwise layout dot depthwise strips pooling windows winograd cells "
        "cell_bodies",
    ),
    "jitgen.run": (
        "jitgen", "cpu loader cache disk replay team threads crew scratch quota shared memory",
    ),
    "jitgen.analysis": ("jitgen", "measure"),
    "jitgen.primitives.nest": (
        "jitgen.primitives", "loops curve stream tables run limits gemm tuning",
    ),
    "jitgen.primitives.layers": (
        "jitgen.primitives", "fully_connected convolution convolution_1d pooling recurrent arrays "
        "images elementwise",
    ),
    "jitgen.primitives.fc": ("jitgen.primitives", "fc_streams=streams layouts"),
    "jitgen.primitives.conv": (
        "jitgen.primitives", "conv_layouts=layouts conv_streams=streams conv_tiles=tiles "
        "conv_weights=weights conv_winograd=winograd conv_depthwise=depthwise conv_cost=cost "
        "windows folding",
    ),
    "jitgen.primitives.rnn": (
        "jitgen.primitives", "recurrent_steps=steps recurrent_streams=streams "
        "recurrent_backward=backward recurrent_lengths=lengths recurrent_kept=kept "
        "recurrent_onnx=onnx",
    ),
    "jitgen.primitives.train": ("jitgen.primitives", "optimizers mlp"),
}  # fmt: skip
#: Old name -> new name
MOVED = {
    "jitgen.analysis.instructions": "jitgen.inspect.instructions",
    "jitgen.objects.names": "jitgen.inspect.names",
    "jitgen.objects.unwind": "jitgen.inspect.unwind",
}
MOVED |= {
    f"{package}.{old}": f"{room}.{new or old}"
    for room, (package, modules) in _ROOMS.items()
    for old, _, new in (module.partition("=") for module in modules.split())
}
_PASSED = ("jitgen", "importlib", "_frozen_importlib", "_frozen_importlib_external")


class _Finder(ABC):
    """A finder and loader of modules that are other modules."""

    @abstractmethod
    def name_of(self, name: str) -> str | None:
        """The module that `name` is, None if this finder knows nothing of it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return None if self.name_of(name) is None else ModuleSpec(name, self)  # type: ignore[arg-type]

    def get_code(self, name: str) -> CodeType | None:
        """For `python -m`."""
        new = self.name_of(name) or name
        spec = importlib.util.find_spec(new)
        get_code = getattr(spec and spec.loader, "get_code", None)
        return get_code(new) if get_code else None

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        # what `import` gives is what stands here once a module's code has run
        name = module.__name__
        sys.modules[name] = importlib.import_module(self.name_of(name) or name)


class _Old(_Finder):
    def name_of(self, name: str) -> str | None:
        return MOVED.get(name)

    def exec_module(self, module: ModuleType) -> None:
        _warn(module.__name__)
        super().exec_module(module)


class _Top(_Finder):
    def __init__(self, top: str) -> None:
        self.top = top

    def name_of(self, name: str) -> str | None:
        return f"jitgen.{name}" if name.startswith(f"{self.top}.") else None


def imported(old: str) -> ModuleType:
    """The module of an old name, for an attribute of a package."""
    _warn(old)
    return importlib.import_module(MOVED[old])


def _warn(old: str) -> None:
    """Warn whoever asked: the nearest frame that is neither ours nor the import system's."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _PASSED:
        frame = frame.f_back
    warnings.warn_explicit(
        f"{old} is {MOVED[old]} now", DeprecationWarning, frame.f_code.co_filename, frame.f_lineno,
        frame.f_globals.get("__name__"), frame.f_globals.setdefault("__warningregistry__", {}),
    )  # fmt: skip


def install() -> None:
    """Let the old names be found: last, so that nothing that is there is hidden."""
    if not any(isinstance(finder, _Old) for finder in sys.meta_path):
        sys.meta_path.append(_Old())


def same_as_ours(top: str) -> None:
    """Make `top`, a folder of a checkout that was imported by its own name, the module jitgen.top,
    and the modules in it those of jitgen.top."""
    sys.meta_path.insert(0, _Top(top))
    sys.modules[top] = sys.modules[f"jitgen.{top}"]
