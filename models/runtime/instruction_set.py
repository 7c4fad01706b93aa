"""Find the instructions of this CPU that multiply and add eight-bit integers."""

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# In the order of their speed, by the names of Linux.
INSTRUCTIONS = {
    "AMX": {"amx_int8"},
    "VNNI": {"avx512_vnni", "avx_vnni"},
    "dot product": {"asimddp", "i8mm"},
}


def integer_instructions(cpuinfo: str | None = None) -> str:
    """Return `AMX`, `VNNI`, `dot product` (ARM), `none`, or `unknown` if the system does not say.

    Args:
        cpuinfo: Content of `/proc/cpuinfo`; None: that of this host.
    """
    if cpuinfo is None:
        try:
            cpuinfo = CPUINFO.read_text()
        except OSError:  # only Linux has this file
            return "unknown"
    known = _flags(cpuinfo)
    if not known:
        return "unknown"
    return next((name for name, flags in INSTRUCTIONS.items() if flags & known), "none")


def _flags(cpuinfo: str) -> set[str]:
    """Return the flags of the first core; x86 calls them flags, ARM features."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return set(value.split())
    return set()
