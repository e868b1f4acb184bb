"""Execution rig: runs machine code with guarded buffers on emulated and real machines.

It knows the kernel ABI and memory protection, nothing of matrices. Modules: `job` (what to run),
`qemu` (AArch64 with SVE and SME), `bochs` (x86-64 with AVX-512), `native` (this computer),
`count` (how much was executed where).
"""
