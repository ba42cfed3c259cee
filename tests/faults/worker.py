"""The test build of the workers: as they are, with a failpoint around everything that they send.

python -m tests.faults.worker ingest|settle|fold [--until-idle]    one worker
python -m tests.faults.worker                               a nursery: it has everything imported, and forks
                                                            a worker for each line of JSON that it reads
"""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.faults import failpoints

CHECKOUT = Path(__file__).resolve().parents[2]


def run(arguments: Sequence[str]) -> None:
    """Run one worker of this process."""
    from metering.settings import settings
    from workers import fold, ingest, settle
    from workers.loop import configure_logging

    workers: dict[str, Callable[[bool], object]] = {
        "ingest": lambda until_idle: ingest.work(settings(), until_idle=until_idle),
        "settle": lambda until_idle: settle.run(until_idle, settings()),
        "fold": lambda until_idle: fold.run(until_idle, settings()),
    }
    settings.cache_clear()
    configure_logging(settings())
    workers[arguments[0]]("--until-idle" in arguments)


def _run_and_exit(arguments: Sequence[str]) -> None:
    from metering.errors import MeteringError

    code = 0
    try:
        run(arguments)
    except MeteringError as error:
        print(f"metering: {error}", file=sys.stderr)
        code = error.exit_code
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 70
    sys.stderr.flush()
    os._exit(code)


def _serve() -> None:
    """Fork a worker for each request, and tell how the children end, until stdin closes."""
    import workers.fold
    import workers.ingest
    import workers.settle  # noqa: F401

    children: set[int] = set()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        ready, _, _ = select.select([sys.stdin], [], [], 0.02)
        if ready:
            line = sys.stdin.readline()
            if not line:
                break
            request = json.loads(line)
            pid = os.fork()
            if pid == 0:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                os.environ.clear()
                os.environ.update(request["environment"])
                log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                nothing = os.open(os.devnull, os.O_RDWR)
                os.dup2(nothing, 0)
                os.dup2(log, 1)
                os.dup2(log, 2)
                _run_and_exit(request["run"])
            children.add(pid)
            print(json.dumps({"started": pid}), flush=True)
        for pid in list(children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                children.discard(pid)
                print(json.dumps({"ended": pid, "code": os.waitstatus_to_exitcode(status)}), flush=True)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


class Worker:
    """A worker of the nursery."""

    def __init__(self, nursery: "Nursery", pid: int, log: Path) -> None:
        self.pid = pid
        self.log = log
        self._nursery = nursery

    @property
    def code(self) -> int | None:
        """How it ended (minus the signal), None while it runs."""
        self._nursery.listen(0.0)
        return self._nursery.ended.get(self.pid)

    def send(self, number: signal.Signals) -> None:
        """A signal, unless it has ended."""
        if self.code is None:
            os.kill(self.pid, number)

    def wait(self, seconds: float = 30.0) -> int:
        """Its exit code; an assert when it does not end in time."""
        deadline = time.monotonic() + seconds
        while (code := self.code) is None:
            assert time.monotonic() < deadline, f"it does not end; its log:\n{self.said()[-3000:]}"
            self._nursery.listen(0.05)
        return code

    def state(self) -> str:
        """As the kernel calls it: R, S, T (stopped), Z."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return "X"

    def wait_for(self, done: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
        """Wait until something holds; an assert when the worker ends before, or time is up."""
        deadline = time.monotonic() + seconds
        while not done():
            assert self.code is None, f"it ended with {self.code} before {what}:\n{self.said()[-3000:]}"
            assert time.monotonic() < deadline, f"no sign of {what}; its log:\n{self.said()[-3000:]}"
            time.sleep(0.02)

    def said(self) -> str:
        """Its log so far."""
        return self.log.read_text() if self.log.exists() else ""


class Nursery:
    """A process with everything imported that forks workers: one starts in a few milliseconds."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ended: dict[int, int] = {}
        self._started: list[int] = []
        self._count = 0
        self._rest = b""
        self._lock = threading.RLock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.worker"],
            cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def __enter__(self) -> "Nursery":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the nursery; what still runs is killed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()

    def start(self, arguments: Sequence[str], environment: dict[str, str], **faults: Any) -> Worker:
        """Fork a worker; `faults` are FAULTS_* variables in small letters, as JSON where they are not text."""
        with self._lock:
            return self._start(arguments, environment, faults)

    def _start(self, arguments: Sequence[str], environment: dict[str, str], faults: dict[str, Any]) -> Worker:
        self._count += 1
        log = self._folder / f"worker-{self._count}.log"
        told = {
            f"FAULTS_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
            for name, value in faults.items()
        }
        request = {"run": list(arguments), "environment": {**environment, **told}, "log": str(log)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        deadline = time.monotonic() + 120
        while not self._started:
            assert time.monotonic() < deadline, "the nursery does not answer"
            self.listen(0.1)
        return Worker(self, self._started.pop(), log)

    def listen(self, seconds: float) -> None:
        """Hear who started and who ended."""
        with self._lock:
            self._listen(seconds)

    def _listen(self, seconds: float) -> None:
        assert self._process.stdout is not None
        handle = self._process.stdout.fileno()
        while select.select([handle], [], [], seconds)[0]:
            heard = os.read(handle, 65_536)
            if not heard:
                return
            *lines, self._rest = (self._rest + heard).split(b"\n")
            for line in lines:
                message = json.loads(line)
                if "started" in message:
                    self._started.append(message["started"])
                else:
                    self.ended[message["ended"]] = message["code"]
            seconds = 0.0


if __name__ == "__main__":
    failpoints.install()
    if len(sys.argv) > 1:
        _run_and_exit(sys.argv[1:])
    _serve()
