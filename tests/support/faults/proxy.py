"""A TCP proxy before PostgreSQL that breaks connections when it is told to, at the byte or the statement it is told."""

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

Kind = Literal["reset", "lost answer", "hole", "slow"]


@dataclass
class Fault:
    """What happens to connections.

    Attributes:
        kind: Both sides are reset; or they are once the server has answered; or nothing goes through any more, and
            neither side is told; or each packet is late.
        after_bytes: Sent by the client on a connection before that.
        at: Must be in what the client sends.
        times: To so many connections; later ones are let through.
    """

    kind: Kind
    after_bytes: int = 0
    at: bytes = b""
    times: int = 1


class Proxy:
    """Listens on this machine and passes on to a port of it."""

    def __init__(self, target_port: int) -> None:
        self._target = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.fault: Fault | None = None
        self.n_faults = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def strike(self, sent: int, block: bytes) -> Fault | None:
        """Take the fault, if it is due on a connection that sends ``block`` after ``sent`` bytes."""
        with self._lock:
            fault = self.fault
            if fault is None or fault.times <= 0 or sent + len(block) <= fault.after_bytes or fault.at not in block:
                return None
            fault.times -= 1
            self.n_faults += 1
            return fault

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._target))
                except OSError:
                    _reset(client)
                    continue
                _Link(self, client, server).start()


class _Link:
    """One connection through the proxy."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._struck: Fault | None = None

    def start(self) -> None:
        threading.Thread(target=self._up, daemon=True).start()
        threading.Thread(target=self._down, daemon=True).start()

    def _up(self) -> None:
        sent = 0
        with suppress(OSError):
            while block := self._client.recv(65536):
                self._struck = self._proxy.strike(sent, block) or self._struck
                if self._struck is not None and self._struck.kind == "reset":
                    self._server.sendall(block[: len(block) // 2])
                    break
                if self._struck is not None and self._struck.kind == "slow":
                    time.sleep(0.05)
                if self._struck is None or self._struck.kind != "hole":
                    self._server.sendall(block)
                sent += len(block)
        self._end()

    def _down(self) -> None:
        with suppress(OSError):
            while block := self._server.recv(65536):
                if self._struck is not None and self._struck.kind == "lost answer":
                    break
                if self._struck is None or self._struck.kind != "hole":
                    self._client.sendall(block)
        self._end()

    def _end(self) -> None:
        _reset(self._client)
        _reset(self._server)


def _reset(peer: socket.socket) -> None:
    with suppress(OSError):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.shutdown(socket.SHUT_RDWR)
    peer.close()


@contextmanager
def proxy_to(port: int) -> Iterator[Proxy]:
    proxy = Proxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
