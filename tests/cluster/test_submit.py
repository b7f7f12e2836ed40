"""What is sent along with a command, and how a job is followed; tests/cluster_jobs sends some."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from importlib.metadata import Distribution, distribution
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock
from zipfile import ZipFile

import pytest

from tests import ROOT
from tests.support.command_line import mistake, script
from tlray.cluster import jobs, submit, wheels
from tlray.core.errors import JobError, UserError

PLUGIN = '''
from tlray.builtin.pixels import GreyPixels

class Third(GreyPixels):
    """A plugin of someone else."""
    name = "third"
'''
PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "third-party"
version = "1.2"
dependencies = ["tlray", "numpy>=2"]

[project.scripts]
third = "third_party:Third"

[project.entry-points."tlray.backbones"]
third = "third_party:Third"

[tool.hatch.build.targets.wheel]
only-include = ["third_party.py"]
"""
ODD = "a && b 'c' \"d\" $HOME ü"
"""A name that a shell would make something else of."""
SECRET = "hunter2-hunter2"


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", *arguments]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """The source of the plugin."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "third_party.py").write_text(PLUGIN)
    return folder


@pytest.fixture(scope="module")
def site(project, tmp_path_factory) -> Path:
    """An environment's packages: those of this one, and the plugin, installed from its folder."""
    site = tmp_path_factory.mktemp("site")
    pip("install", "--no-deps", "--no-build-isolation", "--target", site, project)
    return site


# What goes along


def installed(site: Path, name: str) -> wheels.Package:
    found = distributed(site, name)
    return wheels._read(name, found, json.loads(found.read_text("direct_url.json") or "{}"))


def distributed(site: Path, name: str) -> Distribution:
    (found,) = Distribution.discover(name=name, path=[str(site)])
    return found


def cluster_with(package: wheels.Package, record: str | None = "", **packages: str) -> wheels.Cluster:
    from packaging.markers import default_environment

    here = {package.name: package.version, "tlray": "0.1.0", **packages}
    return wheels.Cluster(markers=default_environment(), packages=here, records={package.name: record})


def test_what_the_cluster_has_in_the_same_state_is_not_sent(site):
    package, third = installed(site, "third-party"), distributed(site, "third-party")
    record = (site / "third_party-1.2.dist-info" / "RECORD").read_text()
    other = record.replace("third_party.py,sha256=", "x,sha256=")
    assert "bin/third" in record
    assert wheels.lacking("third-party", third, cluster_with(package, record)) is None
    for cluster in (
        cluster_with(package, other),
        cluster_with(package, record, **{"third-party": "1.1"}),
        wheels.Cluster(markers={}, packages={}, records={}),
    ):
        sent = wheels.lacking("third-party", third, cluster)
        assert sent is not None
        assert sent.content == package.content


def test_what_is_sent_says_its_content(site, tmp_path):
    package = installed(site, "third-party")
    target = tmp_path / "target"
    zips = [wheels.bundle([package], tmp_path / name) for name in ("a.zip", "b.zip")]
    assert zips[0].read_bytes() == zips[1].read_bytes()  # Ray names it by its content.
    with ZipFile(zips[0]) as zipped:
        zipped.extractall(target)
    sent = distributed(target, "third-party")
    assert sent.version == f"1.2+{package.content}"
    assert [point.name for point in sent.entry_points if point.group == "tlray.backbones"] == ["third"]
    assert (target / "third_party.py").read_text() == PLUGIN


def test_an_installation_that_is_a_link_is_built_as_it_is_now(project, site, tmp_path):
    source, here = shutil.copytree(project, tmp_path / "source"), tmp_path / "site"
    pip("install", "--no-deps", "--no-build-isolation", "--target", here, "--editable", source)
    assert not (here / "third_party.py").exists()
    linked = installed(here, "third-party")
    assert linked.content == installed(site, "third-party").content
    (source / "third_party.py").write_text(PLUGIN + "# changed\n")
    assert installed(here, "third-party").content != linked.content
    (source / "pyproject.toml").write_text("[project")
    with pytest.raises(UserError, match=r"third-party 1.2 cannot be built from .*source"):
        installed(here, "third-party")


def needing(*requires: str, python: str = "") -> wheels.Package:
    return wheels.Package(
        name="third-party", version="1.2", files={}, requires=requires, requires_python=python
    )


def test_what_the_packages_need_is_asked_for_as_it_is_here():
    package = needing(
        "tlray", "numpy>=2", 'colorama; sys_platform == "win32"', 'pytest; extra == "dev"', "flask"
    )
    there = cluster_with(package, numpy="2.0", ray="2.60.0", werkzeug="3.1.9", jinja2="3.1.9", click="8.2")
    needed = wheels.needed([package], there)
    names = [requirement.partition("==")[0] for requirement in needed]
    assert names == ["blinker", "flask", "itsdangerous", "markupsafe"]
    assert all("==" in requirement for requirement in needed)


def test_extras_of_what_is_there_are_looked_at():
    package = needing("ray[data]")
    there = cluster_with(package, ray="2.60.0", numpy="2.1", pyarrow="21", fsspec="2026.1")
    assert "pandas==" in " ".join(wheels.needed([package], there))
    assert not wheels.needed([needing("ray")], cluster_with(package, ray="2.60.0"))


@pytest.mark.parametrize(
    ("package", "reason"),
    [
        (needing("numpy>=99"), "third-party 1.2 needs numpy>=99, and the cluster has numpy 2.0"),
        (needing(python=">=3.99"), r"third-party 1.2 needs Python >=3.99, and the cluster has 3\."),
        (needing("no-such-package"), "no-such-package, which is neither here nor on the cluster"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_sent(package, reason):
    with pytest.raises(UserError, match=reason):
        wheels.needed([package], cluster_with(package, numpy="2.0"))


# The command


@pytest.mark.parametrize(
    ("words", "line", "given"),
    [
        (["inspect", "a b"], "tlray inspect 'a b'", ["inspect", "a b"]),
        (["tlray", "inspect", ODD], None, ["inspect", ODD]),
        (["plugins", "list", "--json"], "tlray plugins list --json", ["plugins", "list", "--json"]),
        (["recipes"], "tlray recipes", ["recipes"]),
    ],
)
def test_words_arrive_as_typed(words, line, given):
    shown, entrypoint = submit._lines(words)
    assert line in (None, shown)
    code = "import json, sys; print(json.dumps(sys.argv[1:]))"
    command = entrypoint.replace("python -P -m tlray", f"{sys.executable} -c '{code}'", 1)
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == given


def test_a_line_for_the_shell_arrives_as_typed():
    line = "tlray one 'a b' && tlray two \"$X\" || tlray three; tlray four | cat"
    _, entrypoint = submit._lines([line])
    command = entrypoint.replace("python -P -m tlray", "printf '<%s>'")
    environment = {**os.environ, "X": "c d"}
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=environment)
    assert done.stdout == "<one><a b><two><c d><four>"


@pytest.mark.parametrize("words", [["extract a --out b"], ["  "], ["cd x && extract a --out tlray"]])
def test_a_line_without_tlray_is_refused(words):
    with pytest.raises(UserError, match="begin each command in it with tlray"):
        submit._lines(words)


@pytest.mark.parametrize(
    "words", [["extract", f"s3://key:{SECRET}@bucket/x"], [f"tlray verify s3://k:{SECRET}@b"]]
)
def test_credentials_in_a_command_are_refused(words):
    with pytest.raises(UserError, match="--env AWS_ACCESS_KEY_ID") as caught:
        submit._lines(words)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [(f"TOKEN={SECRET}", "give the name alone"), ("NO_SUCH_VARIABLE", "no such environment")],
)
def test_variables_are_named(name, reason):
    with pytest.raises(UserError, match=reason) as caught:
        submit._values([name])
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "relative"),
    [
        (["extract", "photos", "--out", "/o"], "photos"),
        (["extract", "/photos", "--out", "out"], "out"),
        (["tlray", "extract", "s3://b/photos", "--out=./out"], "./out"),
        (["fit", "f", "--out", "/o"], "f"),
        (["finetune", "/p", "--model", "m", "--out", "/o"], "m"),
        (["evaluate", "../m", "/p"], "../m"),
        (["evaluate", "/m", "/p", "--out", "report"], "report"),
        (["predict", "/m", "/p", "--out", "p.csv"], "p.csv"),
        (["predict", "/m", "/p", "--out", "/p.csv", "--annotate", "a"], "a"),
        (["run", "my.toml", "/p", "--out", "/o"], "my.toml"),
        (["run", "vgg16-features", "~/p", "--out", "/o"], "~/p"),
        (["extract", "/p", "--out", "/o", "--weights", "w.h5"], "w.h5"),
        (["extract", "/p", "--out", "/o", "--weights", "tests"], "tests"),
        (["verify", "/f", "--images", "p"], "p"),
        (["inspect", "f"], "f"),
        (["plan", "p", "--cluster"], "p"),
        (["tlray extract /p --out /f && tlray fit f --out /m"], "f"),
        (["tlray extract p/ --out /f > log; echo a | tee b"], "p/"),
        # These depend on no folder.
        (["extract", "/p", "--out", "s3://b/o", "--weights", "none", "--classes", "a,b"], None),
        (["run", "vgg16-features", "/p", "--out", "/o"], None),
        (["plugins", "show", "vgg16"], None),
        (['tlray extract $P --out "$O" && python x.py f && cat log'], None),
        (["cd /shared && tlray extract p --out f"], None),
        (["tlray --version; while [ -e /x/wait ]; do sleep 0.2; done"], None),
    ],
)
def test_a_relative_path_is_refused_before_anything_is_sent(words, relative, monkeypatch):
    monkeypatch.chdir(ROOT)
    sent = Mock(side_effect=UserError("enough"))
    monkeypatch.setattr(submit, "submit", sent)
    message = mistake("submit", "--", *words)
    if relative is None:
        assert message == "tlray: enough"
    else:
        assert message.startswith(f"tlray: {relative}: the command runs on the cluster, where a path must be")
        assert os.path.abspath(os.path.expanduser(relative)) in message
        assert not sent.called


def test_a_cluster_that_has_just_started_is_waited_for(monkeypatch):
    monkeypatch.setattr(jobs, "_POLL", 0.01)
    busy = RuntimeError("Request failed with status code 500: No available agent to submit job")
    opened = jobs.Jobs.__new__(jobs.Jobs)
    opened._client, opened.address = Mock(), "http://there:8265"
    opened._client.submit_job.side_effect = [busy, busy, None]
    assert opened.start("x", "n", {}, {}).id.startswith("n-")
    opened._client.submit_job.side_effect = RuntimeError("Request failed: no room")
    with pytest.raises(JobError, match=r"http://there:8265 does not accept the job: .* no room"):
        opened.start("x", "n", {}, {})
    opened._client.submit_job.side_effect = busy
    monkeypatch.setattr(jobs, "_AGENT_SECONDS", 0.1)
    with pytest.raises(JobError, match="No available agent"):
        opened.start("x", "n", {}, {})


def test_a_job_is_found_by_its_name():
    opened = jobs.Jobs.__new__(jobs.Jobs)
    rows = [("n-2", 2, "n"), ("n-1", 1, "n"), ("raysubmit_1", 3, None)]
    details = [
        SimpleNamespace(submission_id=job, start_time=start, metadata={"job_name": name} if name else {})
        for job, start, name in rows
    ]
    opened._client = SimpleNamespace(list_jobs=lambda: details)
    assert opened.open("n-1").id == "n-1"
    assert opened.open("n").id == "n-2"
    with pytest.raises(UserError, match=r"unknown job 'n-3': did you mean n-\d or n-\d"):
        opened.open("n-3")


@pytest.mark.parametrize("address", ["here:6379", "ray://here:10001", "here", "http://here:8265"])
def test_the_dashboard_of_an_address(address):
    assert jobs._dashboard(address) == "http://here:8265"


@pytest.mark.parametrize(
    ("line", "blocks"), [("tlray extract /p", False), ("tlray fit --head third-one", True)]
)
def test_a_package_that_cannot_be_sent_blocks_only_jobs_that_name_its_plugins(line, blocks, monkeypatch):
    def lacking(name, *_):
        if name == "third-party":
            raise UserError("third-party cannot be built")
        return needing() if name == "other" else None

    monkeypatch.setattr(wheels, "installed", lambda: dict.fromkeys(["tlray", "other", "third-party"]))
    monkeypatch.setattr(wheels, "plugins", lambda package: ["third-one"])
    monkeypatch.setattr(wheels, "lacking", lacking)
    monkeypatch.setattr(submit, "_ask", lambda jobs, names: cluster_with(needing()))
    cluster = SimpleNamespace(machines=lambda: {"a", "b"})
    said: list[str] = []
    if blocks:
        with pytest.raises(UserError, match="cannot be built"):
            submit._packages(cluster, line, said.append)
    else:
        assert submit._packages(cluster, line, said.append) == ([needing()], [])
        assert "third-party is not sent with the job" in said[0]


@pytest.mark.parametrize(("machines", "sent"), [({"a"}, []), ({"a", "b"}, ["tlray"])])
def test_nothing_is_sent_to_the_same_installation(machines, sent, monkeypatch):
    """The tests run on an editable installation, whose content nobody knows; so do its nodes."""
    monkeypatch.setattr(wheels, "_build", lambda *_: {})
    there = wheels.here(["tlray"])
    monkeypatch.setattr(wheels, "installed", lambda: {"tlray": distribution("tlray")})
    monkeypatch.setattr(submit, "_ask", lambda jobs, names: there)
    lacking, _ = submit._packages(SimpleNamespace(machines=lambda: machines), "tlray x", lambda text: None)
    assert [package.name for package in lacking] == sent


# Following


class Client:
    """What `Job` needs of Ray's client, with a connection that breaks: for each, what comes until then."""

    def __init__(self, *connections: list[str | Exception], ends: bool = True) -> None:
        self.connections, self.ends = list(connections), ends

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        for event in self.connections.pop(0):
            if isinstance(event, Exception):
                raise event
            yield event

    def get_job_info(self, job: str) -> SimpleNamespace:
        ended = self.ends and not self.connections
        return SimpleNamespace(status=SimpleNamespace(is_terminal=lambda: ended))

    def get_address(self) -> str:
        return "http://there:8265"


def test_what_was_seen_is_not_shown_again_when_a_connection_breaks(monkeypatch):
    monkeypatch.setattr(jobs, "_POLL", 0)
    gone = RuntimeError("gone")
    broken = (["a\n", "b\n", gone], [], [OSError("no route")], ["a\nb\nc\n", gone])
    lines: list[str] = []
    jobs.Job(Client(*broken, ["a\n", "b\nc\nd\n"]), "x-1").follow(lines.append)
    assert lines == ["a\n", "b\n", "c\n", "d\n"]


def test_a_job_that_is_not_heard_of_any_more(monkeypatch):
    monkeypatch.setattr(jobs, "_POLL", 0)
    client = Client(["a\n"], *([RuntimeError("gone")] for _ in range(20)), ends=False)
    with pytest.raises(JobError, match=r"gone.*tlray jobs logs x-1 --address http://there:8265 --follow"):
        jobs.Job(client, "x-1").follow(lambda text: None)
    assert len(client.connections) > 10


def test_the_reason_of_a_failure_is_that_of_pip():
    trace = "  Traceback (most recent call last):\nRuntimeError: pip\nx\nERROR: no such x\n"
    assert jobs.reason(f"setup failed.\nMore.\n{trace}") == "setup failed. RuntimeError: pip ERROR: no such x"
    assert jobs.reason("Job was intentionally stopped.") == "Job was intentionally stopped."
    assert jobs.reason(None) == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://127.0.0.1:1", "as in http://HEAD:8265"),
        ("ray://127.0.0.2:1", "trying http://127.0.0.2:8265\n"),
    ],
)
def test_no_dashboard_there(address, reason):
    done = script("jobs", "list", "--address", address)
    assert done.returncode == 2
    assert reason in done.stderr
    assert "no Ray dashboard answers at http://127.0.0." in done.stderr
    assert len(done.stderr.splitlines()) <= 2
