from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pruning_server.settings import options

REPO = Path(__file__).resolve().parents[2]
DEPLOY = REPO / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
DOCKERFILE = (REPO / "Dockerfile").read_text()
KUBERNETES: dict[str, dict[str, Any]] = {
    path.stem: yaml.safe_load(path.read_text()) for path in (DEPLOY / "kubernetes").glob("*.yaml")
}


# --- Compose ----------------------------------------------------------------------------------------------------------


def test_compose_has_the_three_services_and_their_volumes() -> None:
    assert set(COMPOSE["services"]) == {"server", "prometheus", "grafana"}
    for name, service in COMPOSE["services"].items():
        assert service["image"], name
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).is_dir(), f"{name} mounts {source}, which is not in the repository"
            else:
                assert source in COMPOSE["volumes"], f"{name} uses the volume {source}, which is not declared"


def test_compose_publishes_on_loopback_only() -> None:
    for name, service in COMPOSE["services"].items():
        for port in service["ports"]:
            assert port.startswith("127.0.0.1:"), f"{name} publishes {port}"


def test_compose_images_are_pinned() -> None:
    for name in ("prometheus", "grafana"):
        assert re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", COMPOSE["services"][name]["image"])


def test_grafana_finds_its_data_source_and_the_dashboard() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    source = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
    provider = yaml.safe_load((provisioning / "dashboards" / "pruning.yaml").read_text())["providers"][0]
    mounts = dict(volume.split(":")[:2][::-1] for volume in COMPOSE["services"]["grafana"]["volumes"])
    assert (DEPLOY / mounts[provider["options"]["path"]] / "pruning.json").is_file()
    assert (DEPLOY / mounts["/etc/grafana/provisioning"]).samefile(provisioning)


def test_prometheus_scrapes_the_server_where_its_image_listens() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]}
    assert jobs["pruning-service"] == [f"server:{image_port('PRUNING_METRICS_ADDRESS')}"]
    for rule_file in config["rule_files"]:
        assert (DEPLOY / "prometheus" / rule_file).is_file()


def image_port(variable: str) -> str:
    """The port of an address that the Dockerfile sets."""
    found = re.search(rf"{variable}=0\.0\.0\.0:(\d+)", DOCKERFILE)
    assert found
    return found[1]


# --- Kubernetes -------------------------------------------------------------------------------------------------------


def test_kustomization_lists_every_manifest() -> None:
    listed = {Path(name).stem for name in KUBERNETES["kustomization"]["resources"]}
    assert listed == set(KUBERNETES) - {"kustomization"}


def test_there_is_one_replica_with_a_volume() -> None:
    spec = KUBERNETES["statefulset"]["spec"]
    assert spec["replicas"] == 1
    claims = {claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container()["volumeMounts"]}
    assert claims == {"data"}
    assert mounts["data"] == "/data"
    assert set(mounts) == claims | {volume["name"] for volume in spec["template"]["spec"]["volumes"]}


def test_the_pod_has_no_privileges() -> None:
    pod = KUBERNETES["statefulset"]["spec"]["template"]["spec"]
    user = re.search(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)
    assert user
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsGroup"]) == (int(user[1]), int(user[2]))
    assert pod["automountServiceAccountToken"] is False
    context = container()["securityContext"]
    assert context == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@pytest.mark.parametrize("probe", ["startupProbe", "livenessProbe", "readinessProbe"])
def test_probes_ask_the_grpc_health_service(probe: str) -> None:
    assert container()[probe]["grpc"]["port"] == int(image_port("PRUNING_ADDRESS"))


def test_services_and_policies_point_at_the_pod() -> None:
    labels = KUBERNETES["statefulset"]["spec"]["template"]["metadata"]["labels"]
    assert KUBERNETES["service"]["spec"]["selector"] == labels
    assert KUBERNETES["networkpolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    assert {port["targetPort"]: port["port"] for port in KUBERNETES["service"]["spec"]["ports"]} == ports
    allowed = {port["port"] for rule in KUBERNETES["networkpolicy"]["spec"]["ingress"] for port in rule["ports"]}
    assert allowed == set(ports.values())


def container() -> dict[str, Any]:
    [found] = KUBERNETES["statefulset"]["spec"]["template"]["spec"]["containers"]
    return found  # type: ignore[no-any-return]


# --- The image --------------------------------------------------------------------------------------------------------


def test_the_build_context_has_what_the_dockerfile_copies_and_nothing_else() -> None:
    copied = set()
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        copied.update(sources.split())
    lines = (REPO / ".dockerignore").read_text().splitlines()
    assert copied == {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines
    assert all((REPO / name).exists() for name in copied)


def test_the_image_runs_as_a_numbered_user_with_an_init() -> None:
    final = DOCKERFILE.split("\nFROM ")[-1]
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", final, re.MULTILINE)
    assert 'ENTRYPOINT ["tini", "-s", "--", "pruning-server"]' in final
    assert "STOPSIGNAL SIGTERM" in final
    assert re.search(r"^VOLUME /data$", final, re.MULTILINE)
    exposed = re.search(r"^EXPOSE (.+)$", final, re.MULTILINE)
    assert exposed
    assert exposed[1].split() == [image_port("PRUNING_ADDRESS"), image_port("PRUNING_METRICS_ADDRESS")]


def test_every_variable_of_the_image_is_a_setting() -> None:
    used = set(re.findall(r"\bPRUNING_\w+", DOCKERFILE))
    assert used
    assert used <= {option.variable for option in options().values()}


def test_every_flag_of_the_deployments_is_a_setting() -> None:
    used = {*COMPOSE["services"]["server"]["command"], *container()["args"]}
    assert used <= {option.flag for option in options().values()}


def test_the_image_is_for_the_cpu_unless_asked_otherwise() -> None:
    assert "ARG TORCH_VARIANT=cpu" in DOCKERFILE
    assert re.search(r"^torch==\d+\.\d+\.\d+$", (REPO / "constraints.txt").read_text(), re.MULTILINE)
