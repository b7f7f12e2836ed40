"""The Ray of a command: started beside other work, ended with it; without any, nothing is started."""

import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from tlray.cluster import session
from tlray.core.config import ExtractConfig
from tlray.core.errors import JobError, UserError
from tlray.features.extract import extract
from tlray.models.frozen import FrozenPart


@pytest.fixture
def starts(monkeypatch):
    """What was started and stopped, in place of Ray."""

    class Ray:
        log: list[str]
        fails: Exception | None = None

        @staticmethod
        def is_initialized() -> bool:
            return False

        def shutdown(self) -> None:
            self.log.append(f"stopped by {threading.current_thread().name}")

    ray = Ray()
    ray.log = []

    def start(address: str | None, cpus: int) -> None:
        time.sleep(0.2)
        ray.log.append(f"started by {threading.current_thread().name}")
        if ray.fails:
            raise ray.fails

    monkeypatch.setattr(session, "_start", start)
    monkeypatch.setattr(session, "_prepare", lambda address: None)
    monkeypatch.setattr(session, "_processes", dict)
    monkeypatch.setitem(sys.modules, "ray", ray)
    return ray


def test_the_block_begins_while_ray_starts(starts):
    with session.connect(None) as connected:
        starts.log.append("working")
        connected()
        starts.log.append("connected")
        connected()
    assert starts.log == ["working", "started by ray", "connected", "stopped by ray"]


def test_a_block_that_fails_early_waits_and_stops(starts):
    with pytest.raises(UserError, match="mistake"), session.connect(None):
        raise UserError("mistake")
    assert starts.log == ["started by ray", "stopped by ray"]
    assert not session.is_connected()


def test_no_ray_at_the_address(starts):
    starts.fails = UserError("no Ray answers")
    with pytest.raises(UserError, match="no Ray answers"), session.connect("there:1") as connected:
        connected()
    assert starts.log == ["started by ray"]


def test_where_nothing_listens_ray_does_not_try_for_minutes():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for there in (address, "127.0.0.1:99999"):
        with (
            pytest.raises(UserError, match=f"no Ray answers at --address {there}: .* expected HOST:PORT"),
            session.connect(there) as connected,
        ):
            connected()


def test_a_part_of_a_command_uses_its_ray(starts):
    with session.connect(None) as outer:
        assert session.is_connected()
        with session.connect("ignored:1") as inner:
            assert inner is outer
        assert starts.log == []
    assert starts.log == ["started by ray", "stopped by ray"]


def test_nothing_is_started_before_it_is_needed(starts):
    with session.connect(None, ahead=False):
        pass
    assert starts.log == []
    with session.connect(None, ahead=False) as connected:
        starts.log.append("working")
        connected()
        connected()
    assert starts.log == ["working", "started by ray", "stopped by ray"]


@pytest.mark.parametrize("part", ["head", "node"])
def test_a_ray_that_ends_interrupts_the_block(starts, part, monkeypatch):
    """The head or the process of the node no longer answers."""
    head, node = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
    places = {"its head": head.getsockname(), "its node": node.getsockname()}
    monkeypatch.setattr(session, "_POLL", 0.05)
    monkeypatch.setattr(session, "_processes", lambda: places)

    def work() -> None:
        with session.connect("there:1") as connected:
            connected()
            time.sleep(0.3)
            starts.log.append("working")
            (head if part == "head" else node).close()
            time.sleep(20)

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    with head, node, pytest.raises(JobError, match=f"the Ray at there:1 has ended: its {part} does"):
        work()
    signal.signal(signal.SIGINT, previous)
    assert starts.log == ["started by ray", "working"]  # A lost Ray is not stopped, which may take a minute.


def test_only_a_refused_connection_is_a_sure_sign_that_ray_has_ended():
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        place = server.getsockname()
        assert session._failure(place) == 0
        waiting = [socket.socket() for _ in range(4)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(place)
        assert session._failure(place) == 1  # Like a busy process, it accepts none of them.
        for client in waiting:
            client.close()
    assert session._failure(place) == session._REFUSED
    assert session._failure(("::1%unknown", 1)) == 0


@pytest.mark.parametrize(
    ("failures", "lost"), [([10] * 3, True), ([10, 10, 0] * 9, False), ([1] * 30, True), ([1] * 29, False)]
)
def test_a_ray_is_lost_after_failures_in_a_row(failures, lost, monkeypatch):
    over, rest = threading.Event(), iter(failures)

    def failure(place: object) -> int:
        value = next(rest, 0)
        if not value and rest.__length_hint__() == 0:
            over.set()
        return value

    monkeypatch.setattr(session, "_POLL", 0)
    monkeypatch.setattr(session, "_failure", failure)
    assert bool(session._watch(None, {"its head": ("here", 1)}, over)) is lost


@pytest.mark.slow
def test_a_real_ray_lives_as_long_as_the_block():
    """Its processes end with the thread that started them; and only this machine can reach them."""
    code = (
        "import psutil, signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from tlray.cluster import session\n"
        "with session.connect(None) as connected:\n"
        "    connected()\n"
        "    import ray\n"
        "    time.sleep(1)\n"
        "    print(ray.get(ray.remote(lambda: 7).remote()))\n"
        "    family = [psutil.Process(), *psutil.Process().children(recursive=True)]\n"
        "    sockets = [socket for process in family for socket in process.net_connections('inet')]\n"
        "    hosts = {socket.laddr.ip for socket in sockets if socket.status == 'LISTEN'}\n"
        "    print(hosts and all(host.endswith('127.0.0.1') for host in hosts))\n"
        "print(ray.is_initialized())\n"
        "session._GRACE = 1\n"
        "with session.connect(None) as connected:\n"
        "    connected()\n"
        "    child = [c for c in psutil.Process().children(recursive=True) if 'gcs_server' in c.name()][0]\n"
        "    child.kill()\n"
        "    ray.get(ray.remote(lambda: time.sleep(50)).remote())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["7", "True", "False"], done.stderr
    assert done.returncode == 1
    assert "the local Ray has ended: its head at 127.0.0.1:" in done.stderr.splitlines()[-1]


def test_weights_are_made_before_ray_starts(monkeypatch, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(b"")
    log: list[str] = []
    decide = FrozenPart.decide

    def connect(*_: object, **__: object) -> None:
        log.append("Ray")
        raise UserError("enough")

    monkeypatch.setattr(session, "connect", connect)
    monkeypatch.setattr(FrozenPart, "decide", lambda config: log.append("weights") or decide(config))
    with pytest.raises(UserError, match="enough"):
        extract(str(tmp_path / "images"), str(tmp_path / "set"), ExtractConfig(backbone="grey-pixels"))
    assert log == ["weights", "Ray"]


def test_importing_ray_leaves_the_random_numbers_alone():
    """Random weights are made meanwhile, and must be those of the seed."""
    code = (
        "import random, numpy\n"
        "from tlray.cluster import session\n"
        "random.seed(1); numpy.random.seed(1)\n"
        "before = random.getstate(), numpy.random.get_state()[1].tolist()\n"
        "session._import()\n"
        "print(before == (random.getstate(), numpy.random.get_state()[1].tolist()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_ray_that_another_thread_still_imports_is_not_connected(monkeypatch):
    """As where weights are found before the import that began with them is over."""
    monkeypatch.setitem(sys.modules, "ray", type(sys)("ray"))
    assert not session.is_connected()
