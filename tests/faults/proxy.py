"""A TCP proxy between a worker and a server that delays, stalls, cuts, and swallows replies; it counts what it did."""

import ctypes
import selectors
import socket
import struct
import threading
import time
from collections import Counter
from types import TracebackType

#: After that long without an answer a server's keepalives end a connection (10 s, then 3 times 5 s).
KEEPALIVE_SECONDS = 25.0
_SO_ATTACH_FILTER = 26
#: BPF_RET | BPF_K with 0: of each packet keep nothing.
_DROP_ALL = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))


def _drop_all() -> bytes:
    return struct.pack("HL", 1, ctypes.addressof(_DROP_ALL))


class Proxy:
    """Listens on loopback and passes everything on to `target`: (host, port), or the path of a Unix socket.

    `hits` counts what was done to connections: passed, refused, cut, stalled, delayed, swallowed, blackholed.
    """

    def __init__(self, target: tuple[str, int] | str) -> None:
        self._target = target
        self.hits: Counter[str] = Counter()
        self.refusing = False
        self.stalled = False
        self.delay_seconds = 0.0
        self._swallow: bytes | None = None
        self._swallow_after = b""
        self._cut_after: int | None = None
        self._given_up: dict[socket.socket, float] = {}
        self._pairs: dict[int, tuple[socket.socket, socket.socket]] = {}
        self._lock = threading.Lock()
        self._open = True
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.1)
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def address(self) -> str:
        """host:port of the proxy."""
        host, port = self._listener.getsockname()
        return f"{host}:{port}"

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cut everything and stop."""
        self._open = False
        self.cut()
        for thread in list(self._threads):
            thread.join(10)
        self._listener.close()

    def cut(self) -> int:
        """Reset every open connection, on both sides; returns how many there were."""
        with self._lock:
            pairs = list(self._pairs.values())
        for pair in pairs:
            self._reset(pair)
        self.hits["cut"] += len(pairs)
        return len(pairs)

    def cut_after(self, count: int) -> None:
        """Reset the connection over which, from now on, the `count`th byte of a client goes."""
        self._cut_after = count

    def swallow_reply_to(self, sent: bytes, *, after: bytes = b"") -> None:
        """Pass on the next piece of a client that holds these bytes; drop the reply and cut the client off.

        With `after`: the next one after a piece that holds those.
        """
        with self._lock:
            self._swallow, self._swallow_after = sent, after

    def blackhole(self) -> int:
        """Drop every packet of the open connections on their way in, so that not even TCP answers any more.

        New connections pass. The server hears of it when its keepalives would have told it. Returns how many
        there were.
        """
        with self._lock:
            pairs = list(self._pairs.values())
            self._given_up |= {client: time.monotonic() + KEEPALIVE_SECONDS for client, _ in pairs}
        for client, _ in pairs:
            client.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, _drop_all())
        self.hits["blackholed"] += len(pairs)
        return len(pairs)

    def _reset(self, pair: tuple[socket.socket, socket.socket]) -> None:
        for one in pair:
            try:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def _accept(self) -> None:
        while self._open:
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            if self.refusing:
                self.hits["refused"] += 1
                client.close()
                continue
            thread = threading.Thread(target=self._carry, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _carry(self, client: socket.socket) -> None:
        client.settimeout(30)
        server = socket.socket(socket.AF_UNIX if isinstance(self._target, str) else socket.AF_INET)
        pair = (client, server)
        try:
            server.settimeout(30)
            server.connect(self._target)
            self.hits["passed"] += 1
            with self._lock:
                self._pairs[id(pair)] = pair
            self._pass_on(client, server)
        except OSError:
            pass
        finally:
            with self._lock:
                self._pairs.pop(id(pair), None)
                self._given_up.pop(client, None)
            client.close()
            server.close()

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        drop_reply = False
        with selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            while self._open:
                ready = selector.select(0.1)
                if time.monotonic() > self._given_up.get(client, float("inf")):
                    return
                if self.stalled and ready:
                    self.hits["stalled"] += 1
                    while self.stalled and self._open:
                        time.sleep(0.02)
                for key, _ in ready:
                    source, sink = key.fileobj, key.data
                    assert isinstance(source, socket.socket)
                    piece = source.recv(65_536)
                    if not piece:
                        return
                    if self.delay_seconds:
                        self.hits["delayed"] += 1
                        time.sleep(self.delay_seconds)
                    if source is server and drop_reply:
                        self.hits["swallowed"] += 1
                        self._reset((client, server))
                        return
                    if source is client:
                        drop_reply = self._is_swallowed(piece) or drop_reply
                        if self._is_cut(piece):
                            self.hits["cut"] += 1
                            self._reset((client, server))
                            return
                    sink.sendall(piece)

    def _is_swallowed(self, piece: bytes) -> bool:
        with self._lock:
            if self._swallow is not None and self._swallow_after and self._swallow_after in piece:
                self._swallow_after = b""
            if self._swallow is None or self._swallow_after or self._swallow not in piece:
                return False
            self._swallow = None
            return True

    def _is_cut(self, piece: bytes) -> bool:
        with self._lock:
            if self._cut_after is None:
                return False
            self._cut_after -= len(piece)
            if self._cut_after > 0:
                return False
            self._cut_after = None
            return True
