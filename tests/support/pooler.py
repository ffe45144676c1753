"""A pooler that forwards connections and drops what their start-up packet sets, as PgBouncer can be told to do."""

import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

NO_TLS = (80877103, 80877104)  # the codes of a request for TLS or GSS encryption, which is answered by N


@contextmanager
def pooler(target_port: int, dropped: str) -> Iterator[int]:
    """Yield the port of a pooler; it removes the settings that match ``dropped`` from ``options``."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_accept, args=(listener, target_port, dropped), daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def _accept(listener: socket.socket, target_port: int, dropped: str) -> None:
    while True:
        try:
            client = listener.accept()[0]
        except OSError:
            return
        threading.Thread(target=_serve, args=(client, target_port, dropped), daemon=True).start()


def _serve(client: socket.socket, target_port: int, dropped: str) -> None:
    with client, socket.create_connection(("127.0.0.1", target_port)) as server:
        while True:
            (length,) = struct.unpack("!I", client.recv(4, socket.MSG_WAITALL))
            body = client.recv(length - 4, socket.MSG_WAITALL)
            if struct.unpack("!I", body[:4])[0] not in NO_TLS:
                break
            client.sendall(b"N")
        body = re.sub(rf"-c ({dropped})=[^ \0]*".encode(), b"", body)
        server.sendall(struct.pack("!I", len(body) + 4) + body)
        back = threading.Thread(target=_copy, args=(server.recv, client), daemon=True)
        back.start()
        _copy(client.recv, server)
        back.join()


def _copy(read: Callable[[int], bytes], to: socket.socket) -> None:
    try:
        while block := read(65536):
            to.sendall(block)
        to.shutdown(socket.SHUT_WR)
    except OSError:
        return
