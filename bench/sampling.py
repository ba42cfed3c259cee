"""A sampling profiler: where the main thread stands, looked at many times per second of processor time."""

import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

_INTERVAL_SECONDS: Final = 0.002
_SITE: Final = "site-packages"


class Samples:
    """Counts of what the sampled thread was doing.

    `lines`: (innermost line of this program, innermost function of all); a library's time counts for the line
    that called it. `functions`: functions of this program anywhere on the stack.
    """

    def __init__(self) -> None:
        self.total = 0
        self.lines: Counter[str] = Counter()
        self.functions: Counter[str] = Counter()

    def take(self, frame: FrameType | None) -> None:
        """Count one look at a stack."""
        self.total += 1
        innermost, line, functions = frame, "", set()
        while frame is not None:
            code = frame.f_code
            if _SITE not in code.co_filename and "/lib/python" not in code.co_filename:
                function = f"{_short(code.co_filename)} {code.co_qualname}"
                functions.add(function)
                if not line and innermost is not None:
                    deepest = "" if innermost is frame else f" -> {innermost.f_code.co_name}"
                    line = f"{function}:{frame.f_lineno}{deepest}"
            frame = frame.f_back
        self.lines[line] += 1
        self.functions.update(functions)

    def shares(self, counts: Counter[str], most: int) -> list[tuple[str, float]]:
        """The most frequent entries of `lines` or `functions`, as shares of all samples."""
        return [(name, count / max(1, self.total)) for name, count in counts.most_common(most)]


def _short(filename: str) -> str:
    return "/".join(Path(filename).parts[-2:])


@contextmanager
def sampled() -> Iterator[Samples]:
    """Sample the main thread while the context is open, each time the process has used some processor time.

    By a signal, which arrives at the next bytecode: a long call of a library counts for the line that made it,
    and waiting counts for nothing. A sampling thread would see most often what lets other threads run.
    """
    samples = Samples()

    def look(number: int, frame: FrameType | None) -> None:
        samples.take(frame)

    previous = signal.signal(signal.SIGPROF, look)
    signal.setitimer(signal.ITIMER_PROF, _INTERVAL_SECONDS, _INTERVAL_SECONDS)
    try:
        yield samples
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, previous)
