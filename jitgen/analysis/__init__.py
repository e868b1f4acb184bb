"""How fast a kernel can be on a CPU: machine facts, counts, bounds, predicted cycles.

>>> import jitgen
>>> report = analyze(jitgen.brgemm(64, 64, 64, target="avx512"), "skylake-avx512", batch=16)
>>> report.binding
'FMA pipes'

Not here: what a kernel computes or its listing (`jitgen.inspect`).
"""

from jitgen.analysis.cpus import CPUS, Cpu
from jitgen.analysis.report import Report, analyze

__all__ = ["CPUS", "Cpu", "Report", "analyze"]
