"""At stake: the password and every score travel to PostgreSQL. Whoever asks for ``verify-full`` must get it on every
connection, and a server that cannot prove who it is must get nothing, least of all the password.
"""

import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from churn.database.connection import READER, require_connection
from churn.deployment.services import open_deployment
from churn.deployment.settings import load_settings
from churn.errors import StoreError, TransientError
from orchestration.instance import dagster_environment
from tests.support.site import Run, Site, change_secret, require_no_password

_SSL_REQUEST, _GSS_REQUEST = 80877103, 80877104


class Authority:
    """One that issues certificates for ``localhost``, and for no address."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        own = self._certificate(self._issuer, self._key.public_key(), is_authority=True)
        self.root = folder / f"{name}.pem"
        self.root.write_bytes(own.public_bytes(serialization.Encoding.PEM))

    def issue(self, host: str) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        certificate = self._certificate(subject, key.public_key(), is_authority=False)
        held = self._folder / f"{self._name}-{host}.pem"
        pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
        own = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
        held.write_bytes(own + certificate.public_bytes(pem))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(held)
        return context

    def _certificate(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, *, is_authority: bool
    ) -> x509.Certificate:
        host = subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(self._issuer, subject, key, x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
        builder = builder.add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(str(host))]), critical=False)
        return builder.sign(self._key, hashes.SHA256())


class TlsFront:
    """Speaks TLS as PostgreSQL does, and goes on in clear to a server that cannot; lets nobody in without it.

    Attributes:
        n_let_in: Connections that went through.
        in_clear: First bytes of those that came without TLS.
    """

    def __init__(self, context: ssl.SSLContext, server: tuple[str, int]) -> None:
        self._context = context
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.n_let_in = 0
        self.in_clear: list[bytes] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError, ssl.SSLError), client:
            while (request := client.recv(8)) == struct.pack("!ii", 8, _GSS_REQUEST):
                client.sendall(b"N")
            if request != struct.pack("!ii", 8, _SSL_REQUEST):
                self.in_clear.append(request)
                return
            client.sendall(b"S")
            with self._context.wrap_socket(client, server_side=True) as secure:
                first = secure.recv(65_536)  # a client that does not trust us goes away here
                if first:
                    self.n_let_in += 1
                    self._forward(secure, first)

    def _forward(self, secure: ssl.SSLSocket, first: bytes) -> None:
        with socket.create_connection(self._server) as server:
            server.sendall(first)
            back = threading.Thread(target=_pump, args=(server, secure), daemon=True)
            back.start()
            _pump(secure, server)
            back.join()


def _pump(source: socket.socket, to: socket.socket) -> None:
    with suppress(OSError, ssl.SSLError):
        while data := source.recv(65_536):
            to.sendall(data)
    with suppress(OSError):
        to.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


@pytest.fixture
def front(site: Site, authority: Authority) -> Iterator[TlsFront]:
    with fronting(site, authority.issue("localhost")) as opened:
        yield opened


@contextmanager
def fronting(site: Site, context: ssl.SSLContext) -> Iterator[TlsFront]:
    front = TlsFront(context, (str(site.server.host), int(site.server.port or 0)))
    yield front
    front.close()


@pytest.fixture
def verifying(monkeypatch: pytest.MonkeyPatch, authority: Authority) -> Callable[[Path], None]:
    """Ask for ``verify-full`` as README says, by libpq's own variables."""

    def ask(root: Path) -> None:
        monkeypatch.setenv("PGSSLMODE", "verify-full")
        monkeypatch.setenv("PGSSLROOTCERT", str(root))

    ask(authority.root)
    return ask


@pytest.mark.usefixtures("dagster_database")
def test_every_connection_of_a_deployment_is_encrypted_to_the_server_that_was_asked_for(
    site: Site, front: TlsFront, verifying: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_secret(site, host="localhost", port=front.port)

    with open_deployment(load_settings()) as deployment:
        deployment.store()
        after_store = front.n_let_in
        deployment.registry(read_only=True).aliases()
        after_registry = front.n_let_in
        for name, value in dagster_environment(deployment).items():
            monkeypatch.setenv(name, value)
        with dg.DagsterInstance.get() as instance:
            assert instance.get_dynamic_partitions("churn_variants") == []

    assert 0 < after_store < after_registry < front.n_let_in
    assert front.in_clear == []


def test_set_up_goes_the_same_way(site: Site, front: TlsFront, verifying: Callable[[Path], None], set_up: Run) -> None:
    change_secret(site, host="localhost", port=front.port)

    assert set_up().status == 0

    assert front.n_let_in > 3
    assert front.in_clear == []


def test_a_server_that_is_named_otherwise_gets_nothing(
    site: Site, front: TlsFront, verifying: Callable[[Path], None], set_up: Run
) -> None:
    change_secret(site, host="127.0.0.1", port=front.port)

    set_up().require_one_line("is not trusted", 'certificate for "localhost"', 'host name "127.0.0.1"', "PGSSLROOTCERT")

    assert front.n_let_in == 0


def test_a_server_that_another_authority_vouches_for_gets_nothing(
    site: Site, tmp_path: Path, verifying: Callable[[Path], None], set_up: Run
) -> None:
    with fronting(site, Authority(tmp_path, "stranger").issue("localhost")) as front:
        change_secret(site, host="localhost", port=front.port)

        set_up().require_one_line("is not trusted", "certificate verify failed", "PGSSLROOTCERT")

    assert front.n_let_in == 0


def test_a_root_certificate_that_is_not_there_is_told(
    site: Site, front: TlsFront, verifying: Callable[[Path], None], tmp_path: Path, set_up: Run
) -> None:
    verifying(tmp_path / "absent.pem")
    change_secret(site, host="localhost", port=front.port)

    set_up().require_one_line("is not trusted", "absent.pem", "does not exist", "PGSSLROOTCERT")


def test_a_server_without_tls_gets_nothing(site: Site, verifying: Callable[[Path], None], set_up: Run) -> None:
    set_up().require_one_line("is not trusted", "server does not support SSL")


@pytest.mark.usefixtures("dagster_database")
def test_a_url_of_the_predictions_says_it_for_all_its_databases(
    site: Site, front: TlsFront, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = site.login.set(host="localhost", port=front.port, database=site.churn)
    url = url.set(query={"sslmode": "verify-full", "sslrootcert": str(authority.root)}, drivername="postgresql")
    monkeypatch.setenv("CHURN_DATABASE_URL", url.render_as_string(hide_password=False))

    with open_deployment(load_settings()) as deployment:
        for database in (deployment.database, deployment.dagster_database):
            require_connection(database)
        deployment.store()

    assert front.n_let_in > 2
    stranger = Authority(tmp_path, "stranger")
    require_refused(url.update_query_dict({"sslrootcert": str(stranger.root)}))


def require_refused(url: sa.URL) -> None:
    with pytest.raises(StoreError, match="is not trusted") as refused:
        require_connection(url.set(drivername="postgresql+psycopg2"), role=READER)
    assert not isinstance(refused.value, TransientError)  # no retry would help
    require_no_password(str(refused.value))
