"""The assembled boot ROM of the rig for Bochs, so that running needs no assembler.

ROM is generated from bochs_rom.S, which explains it. After a change there, rebuild in the folder
tests (needs GNU binutils for x86-64): `python -c "from rig.bochs_rom import rebuild; rebuild()"`
"""

from __future__ import annotations

import base64
import subprocess
import tempfile
import zlib
from pathlib import Path

ROM_BYTES = 0x10000
SOURCE = Path(__file__).with_name("bochs_rom.S")


def rom() -> bytes:
    """Return the 64 KiB ROM."""
    return zlib.decompress(base64.b85decode("".join(ROM)))


def assemble() -> bytes:
    """Assemble bochs_rom.S with `as` and `objcopy` and return the 64 KiB ROM."""
    with tempfile.TemporaryDirectory(prefix="rig-rom-") as folder:
        made, raw = Path(folder, "rom.o"), Path(folder, "rom.bin")
        subprocess.run(["as", "--64", str(SOURCE), "-o", str(made)], check=True)
        command = ["objcopy", "-O", "binary", "-j", ".text", str(made), str(raw)]
        subprocess.run(command, check=True)
        content = raw.read_bytes()
    if len(content) != ROM_BYTES:
        raise ValueError(f"the assembled ROM has {len(content)} bytes, not {ROM_BYTES}")
    return content


def rebuild() -> None:
    """Assemble bochs_rom.S and replace the constant ROM at the end of this file."""
    text = base64.b85encode(zlib.compress(assemble(), 9)).decode()
    lines = [f'    "{text[i : i + 92]}",' for i in range(0, len(text), 92)]
    path = Path(__file__)
    head = path.read_text().rpartition("\nROM = (")[0]
    path.write_text("\n".join([head, "ROM = (", *lines, ")", ""]))


ROM = (
    "c-rmOPiz!b9KiA4mR;Ct;jKckYM~1{iH3%3gG7xSx}?Tw#H7TK6utByYtuyNfej>HwkZTAE2W7sYP_I{v0R{r7?&clEh",
    "*qZL5#7-CI;y%+H5R;jQknjOk3G`C!;s>{UqHt-+41{=g%Jc=bd*h3{2!yY-M*MSCW(xwRR#`N-vI^jmg}}f=D^na@kD",
    "Pil|Jkv_WD8wYHp_ZWSd-DWybYU}B&=aOo>CtzxVC5+bDrvs=kTX{i}ozEPhzS7ouZTsE7r@3Y?dGa@Nzxp_Kfrcb1&m",
    "eq(9o1LWD>3{omu=9-6q=K32CboE+oTto`TZ}s?Gny+5HXDLnUfhvh38&KYoix3r*ywbaer3%mF>4RUe$j6Krf^EszRh",
    "M)*RKoHoEWU#a(UsDtU9(X*bbI$FTR{|`*ku{-VK+J^{m_4Q`55{>u+c;zHKHNozC#mnw>5)ZYe(LbcbWJ(;JS@ID5l!",
    "lT(<#g@fTjqpmmRdgt1`a=SO$?v1s3XWff;wz|c-xf}BO%%eBMhX=#q=%54-;^Pm(;pmZY_<SfFP7a%)v(xpm?%{05Yp",
    "%DoQ>A}!z3pAEAI|PQob6V}8l6;duXBT$={;qhiuC`{lwa=lPuI9FtO)NfpEwl@zixYL_%?^vo9E`oolJ1aeRGdm%n|z",
    "dJ>PfDy*)R7@2$ajC~?fZZu54$TccNN`_2dN_(W!^CHM*44Bz<N`_4?Q4!-2jMrDSRN%Juxp2+OZ>(}nS+MVD1#;!d(_",
    "y4B$^#?Pz%qhPP74o;UrQn;}o*!>ho5#J%=u|`9<j764Yo^UBkNh5N_+wthe2h*d=Rd=<4^GUq#m==oJ$`?!p*8u!P;&",
    "R|NX6_4e&bTOo!K3qed}7%J#cS!m-)#07xLffyzl#GbGh}ZX`ciJd!$G7Hgor?DLBnkPfWiU=^DK;(u=ec>A0?sbV4U0",
    "y;$G4Tir|am8wqapG@TzF38N+>hY@i2lSVb`3Lo9k*?G4M|!C~5b0%lkF~ziJ0jPU(%Y)~A^nnd{KI-<<oM;<iS!CxU)",
    "A+`iFN);edA8`@sH>$k#5jGM*2}b9_h#Q7m<Eke;VmV{a&P3>HU#jt@Dv?(mU?=0^c_uA03|?-@PbrN^e4W*8J?nx$*X",
    "Kc~&wBCAmTQM{4E2=@vg$NvLqU>es89B(o?fu>tk>k*!vDSlwlHuhj*s2dzG0^{~}tt1nqSX?4YFiAOtSb=vBT)vZ={S",
    "lwlHuhj*s2dzG0^{~}tt1nqSX?4YFNm%!9bvo!7B>(^b3!X^xzX1RM00030cR%w80000000000000000000000000000",
    "00000000000000000000000000000000000000000000000000000000000000000000000000030!nFCTRP|rvt^9l",
)
