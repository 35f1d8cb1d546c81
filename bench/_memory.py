"""How much memory a process took at its highest."""

from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_mebibytes() -> float:
    """Return the peak resident memory of this process since its program began, in MiB; of Linux, which tells it.

    ``getrusage`` would tell the peak of the process that started this one, where that is larger.
    """
    line = next(line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024
