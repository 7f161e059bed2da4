"""What `compose.yaml` promises, read from the file: no container engine is needed.

Each promise is a function that lists its breaches. It must find none in the real file and one in
a copy with a seeded breach, so that a check that sees nothing cannot pass for a kept promise.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "compose.yaml").read_text()
DOCKERFILES = sorted((ROOT / "deploy").glob("*/Dockerfile"))
ONE_SHOT = {"store-init", "publisher"}
NODES = {"node-a", "node-b", "node-gpu"}
PROFILES = {
    "node-gpu": ["gpu"],
    "gateway": ["gateway"],
    "prometheus": ["observability"],
    "grafana": ["observability"],
    "publisher": ["tools"],
}
SECRET = re.compile(r"SECRET|PASSWORD|ACCESS_KEY|ROOT_USER|TOKEN")
REQUIRED = re.compile(r"\$\{(?P<name>[A-Z0-9_]+):\?[^}]+\}")
DOCKER_HUB_MINIO = re.compile(r"^((index\.|registry-1\.)?docker\.io/)?minio/")

Services = dict[str, dict[str, Any]]


def services(text: str) -> Services:
    found: Services = yaml.safe_load(text)["services"]
    return found


def open_ports(text: str) -> list[str]:
    return [
        f"{name}: {port}"
        for name, service in services(text).items()
        for port in service.get("ports", [])
        if not str(port).startswith("127.0.0.1:")
    ]


def floating_images(text: str) -> list[str]:
    images = [str(service.get("image", "")) for service in services(text).values()]
    return [
        image
        for image in images
        if ":" not in image.rpartition("/")[2] or image.endswith(":latest")
    ]


def literal_secrets(text: str) -> list[str]:
    named = [
        f"{name}: {key}"
        for name, service in services(text).items()
        for key, value in service.get("environment", {}).items()
        if SECRET.search(key) and not REQUIRED.fullmatch(str(value))
    ]
    return named + re.findall(r"\w+://[^\s/@]*:[^\s/@]*@|requirepass\s+\S+", text)


def unwatched_services(text: str) -> list[str]:
    return [
        name
        for name, service in services(text).items()
        if name not in ONE_SHOT and not service.get("healthcheck", {}).get("test")
    ]


def docker_hub_minio(text: str) -> list[str]:
    images = [str(service.get("image", "")) for service in services(text).values()]
    return [image for image in images if DOCKER_HUB_MINIO.match(image)]


def privileged_services(text: str) -> list[str]:
    return [
        name
        for name, service in services(text).items()
        if service.get("cap_drop") != ["ALL"]
        or service.get("read_only") is not True
        or "no-new-privileges:true" not in service.get("security_opt", [])
        or service.get("privileged", False)
    ]


def hasty_services(text: str) -> list[str]:
    """Services that talk to the store without waiting until it is there."""
    return [
        name
        for name, service in services(text).items()
        if "LORAPOOL_S3_ENDPOINT" in service.get("environment", {})
        and service["depends_on"].get("minio", {}).get("condition") != "service_healthy"
    ]


@pytest.mark.parametrize(
    ("breaches", "before", "after"),
    [
        pytest.param(open_ports, "127.0.0.1:9000:9000", "9000:9000", id="ports_are_on_loopback"),
        pytest.param(
            open_ports, "127.0.0.1:50052:", "0.0.0.0:50052:", id="no_node_port_is_on_every_address"
        ),
        pytest.param(
            floating_images, "valkey:9.1.2-alpine", "valkey:latest", id="no_image_is_latest"
        ),
        pytest.param(floating_images, "valkey:9.1.2-alpine", "valkey", id="every_image_has_a_tag"),
        pytest.param(
            literal_secrets,
            "LORAPOOL_S3_SECRET_KEY: ${MINIO_ROOT_PASSWORD:?set it in .env, see .env.example}",
            "LORAPOOL_S3_SECRET_KEY: hunter2-hunter2",
            id="no_secret_is_written_down",
        ),
        pytest.param(
            literal_secrets,
            "MINIO_ROOT_USER: ${MINIO_ROOT_USER:?set it in .env, see .env.example}",
            "MINIO_ROOT_USER: ${MINIO_ROOT_USER:-minioadmin}",
            id="no_credential_has_a_default",
        ),
        pytest.param(
            literal_secrets, "redis://redis", "redis://:hunter2@redis", id="no_password_in_a_url"
        ),
        pytest.param(
            unwatched_services,
            "test: [CMD, inference-node, status, --check]",
            "test: []",
            id="every_long_running_service_has_a_health_check",
        ),
        pytest.param(
            docker_hub_minio,
            "image: lorapool-minio:",
            "image: docker.io/minio/minio:",
            id="minio_is_not_pulled_from_docker_hub",
        ),
        pytest.param(
            docker_hub_minio,
            "image: lorapool-minio:",
            "image: minio/minio:",
            id="minio_is_not_pulled_by_its_short_name",
        ),
        pytest.param(
            privileged_services,
            "cap_drop: [ALL]",
            "cap_drop: [NET_RAW]",
            id="no_service_keeps_a_capability",
        ),
        pytest.param(
            privileged_services,
            "read_only: true",
            "read_only: false",
            id="every_root_file_system_is_read_only",
        ),
        pytest.param(
            hasty_services,
            "minio: {condition: service_healthy}",
            "minio: {condition: service_started}",
            id="nothing_starts_before_the_store_is_healthy",
        ),
    ],
)
def test_compose_keeps_its_promise(
    breaches: Callable[[str], list[str]], before: str, after: str
) -> None:
    assert breaches(TEXT) == []
    assert before in TEXT
    assert breaches(TEXT.replace(before, after)) != []


def schema_check(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema"]
    return subprocess.run(
        [*command, "vendor.compose-spec", str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_compose_file_is_valid_and_a_typo_in_it_is_refused(tmp_path: Path) -> None:
    real = schema_check(ROOT / "compose.yaml")
    assert real.returncode == 0, real.stdout + real.stderr

    typo = tmp_path / "compose.yaml"
    typo.write_text(TEXT.replace("healthcheck:", "helthcheck:"))
    refused = schema_check(typo)
    assert refused.returncode == 1
    assert "helthcheck" in refused.stdout


def test_nodes_have_a_minute_to_finish_and_wait_for_a_store_that_keeps_its_rules() -> None:
    found = services(TEXT)
    for name in NODES:
        assert found[name]["stop_grace_period"] == "60s"
        store_init = found[name]["depends_on"]["store-init"]
        assert store_init["condition"] == "service_completed_successfully"
    assert found["store-init"]["command"] == ["adapter-store init && adapter-store check"]


def test_every_service_that_uses_the_store_is_told_all_about_it() -> None:
    store = {"ENDPOINT", "BUCKET", "REGION", "ACCESS_KEY", "SECRET_KEY"}
    expected = {f"LORAPOOL_S3_{part}" for part in store}
    expected |= {"LORAPOOL_REDIS_URL", "LORAPOOL_CACHE_DIR"}
    listening = {"LORAPOOL_LISTEN", "LORAPOOL_METRICS_LISTEN", "LORAPOOL_INSECURE"}
    listening.add("LORAPOOL_BASE_MODEL")
    found = services(TEXT)
    for name in ONE_SHOT:
        assert set(found[name]["environment"]) == expected
    for name in NODES:
        assert set(found[name]["environment"]) == expected | listening


def test_without_a_profile_there_are_the_store_and_two_nodes_and_nothing_they_can_do_without() -> (
    None
):
    profiles = {name: service.get("profiles") for name, service in services(TEXT).items()}
    assert {name: profile for name, profile in profiles.items() if profile} == PROFILES
    always = profiles.keys() - PROFILES.keys()
    assert always == {"minio", "redis", "store-init", "node-a", "node-b"}


def strays(text: str) -> list[str]:
    """Services that a configuration of another service names and that do not exist."""
    gateway = yaml.safe_load((ROOT / "deploy/envoy/compose.yaml").read_text())
    found = services(text)
    named = [
        place["endpoint"]["address"]["socket_address"]["address"]
        for cluster in gateway["static_resources"]["clusters"]
        if cluster["name"] == "nodes"
        for place in cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    ]
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yaml").read_text())
    named += [
        target.partition(":")[0]
        for job in scraped["scrape_configs"]
        for target in job["static_configs"][0]["targets"]
    ]
    sources = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasource.yaml").read_text())
    named += [urlsplit(source["url"]).hostname for source in sources["datasources"]]
    return [name for name in named if name not in found]


def missing_mounts(text: str) -> list[str]:
    """Files of this repository that a service wants mounted and that are not there."""
    mounts = [
        str(mount).partition(":")[0]
        for service in services(text).values()
        for mount in service.get("volumes", [])
        if str(mount).startswith("./")
    ]
    return [mount for mount in mounts if not (ROOT / mount).exists()]


@pytest.mark.parametrize(
    ("breaches", "before", "after"),
    [
        pytest.param(strays, "  node-b:\n", "  node-c:\n", id="gateway_and_prometheus_find_nodes"),
        pytest.param(
            strays, "  prometheus:\n    <<", "  metrics:\n    <<", id="grafana_its_source"
        ),
        pytest.param(
            missing_mounts, "deploy/grafana/lorapool", "deploy/lorapool", id="files_exist"
        ),
    ],
)
def test_what_services_say_of_each_other_is_true(
    breaches: Callable[[str], list[str]], before: str, after: str
) -> None:
    assert breaches(TEXT) == []
    assert before in TEXT
    assert breaches(TEXT.replace(before, after)) != []


def test_a_node_on_a_card_reserves_one_and_is_the_image_that_insists_on_it() -> None:
    node = services(TEXT)["node-gpu"]
    [device] = node["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    dockerfile = (ROOT / node["build"]["dockerfile"]).read_text()
    stage = dockerfile.partition(f"AS {node['build']['target']}\n")[2].partition("FROM")[0]
    assert "LORAPOOL_DEVICE=cuda" in stage
    assert dockerfile.rpartition("\nFROM ")[2] == "served AS node\n", "the default is another"


HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent))


@pytest.mark.skipif(HADOLINT is None, reason="hadolint's wheel is not made for this platform")
@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
def test_hadolint_finds_no_fault_with_an_image_and_one_where_there_is_one(
    dockerfile: Path, tmp_path: Path
) -> None:
    def findings(path: Path) -> str:
        ran = subprocess.run(
            [str(HADOLINT), "--no-color", str(path)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return ran.stdout + ran.stderr

    assert findings(dockerfile) == ""
    faulty = tmp_path / "Dockerfile"
    faulty.write_text(f"{dockerfile.read_text()}RUN cd /tmp && sudo true\n")
    assert "DL3004" in findings(faulty)


def test_the_env_example_names_every_variable_compose_demands_and_git_ignores_the_real_one() -> (
    None
):
    demanded = {match["name"] for match in REQUIRED.finditer(TEXT)}
    example = dict(
        line.split("=", 1)
        for line in (ROOT / ".env.example").read_text().splitlines()
        if line and not line.startswith("#")
    )
    assert demanded == {"MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD"}
    assert all(example[name].startswith("change-me") for name in demanded)
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


def external_images(dockerfile: Path) -> Iterator[str]:
    stages: set[str] = set()
    for line in dockerfile.read_text().splitlines():
        if match := re.match(r"FROM (\S+)(?: AS (\S+))?$", line):
            if match[1] not in stages:
                yield match[1]
            stages.add(match[2])


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
def test_images_are_built_from_exact_releases_and_run_as_a_user(dockerfile: Path) -> None:
    images = list(external_images(dockerfile))
    assert images
    for image in images:
        assert re.search(r":\d+\.\d+\.\d+", image), image
        assert not DOCKER_HUB_MINIO.match(image)
    assert "USER 10001:10001" in dockerfile.read_text().splitlines()


def test_compose_names_the_minio_release_that_its_dockerfile_builds() -> None:
    built = re.search(
        r"^ARG MINIO_VERSION=(\S+)$", (ROOT / "deploy/minio/Dockerfile").read_text(), re.M
    )
    assert built is not None
    assert services(TEXT)["minio"]["image"] == f"lorapool-minio:{built[1]}"


def test_build_contexts_admit_only_what_the_images_need() -> None:
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    kept = [rule for rule in rules if rule and not rule.startswith("#")]
    admitted = {rule[1:] for rule in kept if rule.startswith("!")}
    assert kept[0] == "*"
    assert admitted == {
        "pyproject.toml",
        "constraints.txt",
        "README.md",
        "LICENSE",
        "adapter_store",
        "inference_node",
    }
    assert all((ROOT / path).exists() for path in admitted)
