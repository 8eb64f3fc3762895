//! compose.yaml and the Kubernetes manifests: every name that one part refers to is defined in another.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{duration, files, help, list, max_shutdown_time, repository_path, string_at, text, yaml};
use crate::support::{Db, Server, migrated};

const COMPOSE: &str = "deploy/compose/compose.yaml";
const NAME: &str = "app.kubernetes.io/name";

/// The services of compose.yaml, with YAML merge keys resolved.
fn services() -> Vec<(String, Value)> {
    let compose = yaml(COMPOSE);
    let services = compose["services"].as_object().unwrap().clone();
    let merged = services.into_iter().map(|(name, mut service)| {
        if let Some(Value::Object(base)) = service.as_object_mut().unwrap().remove("<<") {
            for (key, value) in base {
                service.as_object_mut().unwrap().entry(key).or_insert(value);
            }
        }
        (name, service)
    });
    merged.collect()
}

fn service(name: &str) -> Value {
    services().into_iter().find(|(other, _)| other == name).unwrap_or_else(|| panic!("no service {name}")).1
}

#[test]
fn compose_dependencies_and_mounts_exist() {
    let declared = yaml(COMPOSE)["volumes"].as_object().unwrap().clone();
    let mut used = BTreeSet::new();
    for (name, service) in services() {
        let waits = &service["depends_on"];
        let conditions =
            waits.as_object().into_iter().flatten().map(|(on, how)| (on.clone(), string_at(how, "/condition")));
        let plain = list(waits, "").iter().map(|on| (on.as_str().unwrap().to_owned(), "service_started"));
        for (on, condition) in conditions.chain(plain) {
            let dependency = self::service(&on);
            match condition {
                "service_started" => {}
                "service_healthy" => {
                    assert!(dependency["healthcheck"]["test"].is_array(), "{name}: {on} has no health check")
                }
                "service_completed_successfully" => {
                    assert!(dependency["restart"].is_null(), "{name} waits for {on}, which is restarted for ever");
                }
                other => panic!("{name}: {other}"),
            }
        }
        for volume in list(&service, "/volumes") {
            let source = volume.as_str().unwrap().split(':').next().unwrap();
            if source.starts_with('.') {
                assert!(repository_path("deploy/compose").join(source).exists(), "{name}: there is no {source}");
            } else {
                assert!(declared.contains_key(source), "{name}: the volume {source} is not declared");
                assert!(used.insert(source.to_owned()), "two services share the volume {source}");
            }
        }
        for port in list(&service, "/ports") {
            assert!(
                port.as_str().unwrap().starts_with("127.0.0.1:"),
                "{name} publishes a port beyond loopback: {port}"
            );
        }
        if service["image"] == "model-catalog" {
            let context = repository_path("deploy/compose").join(string_at(&service, "/build/context"));
            assert!(context.join(string_at(&service, "/build/dockerfile")).is_file(), "{name}");
            let command = list(&service, "/command").first().map_or("serve", |word| word.as_str().unwrap());
            assert!(help(command).contains("DATABASE_URL"), "{name} runs {command}");
        }
    }
    assert_eq!(used.len(), declared.len(), "only {used:?} are used");
}

#[test]
fn compose_addresses_match_between_services() {
    let replicas: Vec<_> = services().into_iter().filter(|(name, _)| name.starts_with("catalog-")).collect();
    assert_eq!(replicas.len(), 2);
    let balancer = service("balancer")["environment"].clone();
    let prometheus = text("deploy/prometheus/prometheus.yaml");
    let image = text("deploy/Dockerfile");
    let port = |variable: &str| {
        let value = image.split(&format!("{variable}=")).nth(1).unwrap().split_whitespace().next().unwrap();
        value.rsplit(':').next().unwrap().to_owned()
    };
    let [api, admin] = ["CATALOG_ADDR", "CATALOG_ADMIN_ADDR"].map(port);
    assert_eq!(balancer["CHECK_PORT"], admin);
    for (name, replica) in replicas {
        let known = ["REPLICA_1", "REPLICA_2"].iter().any(|number| balancer[number] == format!("{name}:{api}"));
        assert!(known, "the load balancer lacks {name}");
        assert!(prometheus.contains(&format!("\"{name}:{admin}\"")), "prometheus.yaml lacks {name}");
        let mount = string_at(&replica, "/volumes/0").split(':').nth(1).unwrap().to_owned();
        assert!(image.contains(&format!("CATALOG_SNAPSHOT_FILE={mount}/")) && image.contains(&format!(" {mount}\n")));
        let setting = |variable: &str| replica["environment"][variable].as_str().map(str::to_owned);
        assert!(duration(string_at(&replica, "/stop_grace_period")) >= max_shutdown_time(setting), "{name}");
        assert_eq!(
            (&replica["read_only"], &replica["cap_drop"]),
            (&true.into(), &serde_json::json!(["ALL"])),
            "{name}"
        );
    }
    let source = yaml("deploy/compose/grafana/datasource.yaml");
    assert_eq!(string_at(&source, "/datasources/0/url"), "http://prometheus:9090");
    let provider = yaml("deploy/compose/grafana/dashboards.yaml");
    let directory = string_at(&provider, "/providers/0/options/path").to_owned();
    let mounted = list(&service("grafana"), "/volumes")
        .iter()
        .any(|volume| volume.as_str().unwrap().contains(&format!("dashboard.json:{directory}/")));
    assert!(mounted, "the dashboard is not where Grafana looks for it");
}

#[tokio::test]
async fn compose_role_can_serve_and_nothing_else() {
    let roles = text("deploy/compose/roles.sql");
    let replica = service("catalog-a");
    let password = string_at(&replica, "/environment/PGPASSWORD").to_owned();
    assert!(roles.contains(&format!("CREATE ROLE catalog LOGIN PASSWORD '{password}'")));
    assert!(string_at(&replica, "/environment/DATABASE_URL").starts_with("postgres://catalog@postgres:"));

    // In the order of compose.yaml: roles, migrations, sample catalog, servers.
    let db = Db::empty().await;
    db.sql(&roles).await;
    migrated(&db.url).await;
    db.sql(&text("sql/sample_models.sql")).await;
    let url = db.url.replace("user=postgres", "user=catalog");
    let server = Server::start_with(&url, crate::support::NOTIFY_ONLY).await;
    db.sql("UPDATE models SET name = 'changed' WHERE id = 'flux-dev'").await;
    server.until_named("flux-dev", "changed").await;
    let error = crate::support::connect(&url).await.simple_query("SELECT FROM models").await.unwrap_err();
    assert_eq!(error.code().map(|code| code.code()), Some("42501"));
}

/// The manifests that kustomization.yaml lists, by kind.
fn manifest(kind: &str) -> Value {
    let listed = yaml("deploy/kubernetes/kustomization.yaml");
    let files = list(&listed, "/resources").iter().map(|file| file.as_str().unwrap()).filter(|f| f.ends_with(".yaml"));
    let mut found = files.map(|file| yaml(&format!("deploy/kubernetes/{file}"))).filter(|found| found["kind"] == kind);
    found.next().unwrap_or_else(|| panic!("kustomization.yaml lists no {kind}"))
}

#[test]
fn kustomization_lists_every_manifest() {
    let listed = yaml("deploy/kubernetes/kustomization.yaml");
    let names: BTreeSet<_> = list(&listed, "/resources").iter().map(|name| name.as_str().unwrap().to_owned()).collect();
    let existing = files(&repository_path("deploy/kubernetes")).into_iter();
    let mut existing: BTreeSet<_> =
        existing.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    // The job is run separately, because it needs the privileges of the database owner; the other file is the list.
    assert!(existing.remove("migrate.yaml") && existing.remove("kustomization.yaml"));
    assert_eq!(names, existing);
    let dashboard = yaml("deploy/grafana/kustomization.yaml");
    assert!(repository_path("deploy/grafana").join(string_at(&dashboard, "/configMapGenerator/0/files/0")).is_file());
    let labels = [&dashboard["generatorOptions"]["labels"]].into_iter().cloned();
    let manifests = names.iter().map(|name| yaml(&format!("deploy/kubernetes/{name}"))["metadata"]["labels"].clone());
    for labels in labels.chain(manifests) {
        assert_eq!(labels[NAME], "model-catalog", "{labels}");
    }
    // The kustomize in Debian 12's kubectl 1.20 knows neither of these.
    for (list, unknown) in [(&listed, "labels"), (&dashboard["configMapGenerator"][0], "options")] {
        assert!(list[unknown].is_null(), "{unknown}");
    }
    let directories: Vec<_> = names.iter().filter(|name| !name.ends_with(".yaml")).collect();
    assert!(directories.is_empty(), "kubectl 1.20 accepts no directories in `resources`: {directories:?}");
}

#[test]
fn manifest_selectors_ports_and_volumes_match() {
    let deployment = manifest("Deployment");
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    for (selector, labels) in [
        (&deployment["spec"]["selector"]["matchLabels"], labels),
        (&manifest("Service")["spec"]["selector"], labels),
        (&manifest("PodDisruptionBudget")["spec"]["selector"]["matchLabels"], labels),
        // It selects services.
        (&manifest("ServiceMonitor")["spec"]["selector"]["matchLabels"], &manifest("Service")["metadata"]["labels"]),
    ] {
        assert!(selector[NAME].is_string() && selector[NAME] == labels[NAME], "{selector} and {labels}");
    }
    let spread = list(&deployment, "/spec/template/spec/topologySpreadConstraints");
    assert!(spread.len() == 2 && spread.iter().all(|s| s["labelSelector"]["matchLabels"][NAME] == labels[NAME]));
    // The alert rules expect the value of that label as the job.
    let monitor = manifest("ServiceMonitor");
    assert_eq!((string_at(&monitor, "/spec/jobLabel"), &labels[NAME]), (NAME, &"model-catalog".into()));
    assert!(text("deploy/prometheus/alerts.yaml").contains("job=\"model-catalog\""));

    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    let variable = |name: &str| {
        let mut all = list(container, "/env").iter();
        all.find(|variable| variable["name"] == name).and_then(|variable| variable["value"].as_str()).map(str::to_owned)
    };
    let port = |name: &str| {
        list(container, "/ports").iter().find(|port| port["name"] == name).unwrap()["containerPort"].clone()
    };
    for (name, setting) in [("http", "CATALOG_ADDR"), ("admin", "CATALOG_ADMIN_ADDR")] {
        assert!(variable(setting).unwrap().ends_with(&format!(":{}", port(name))), "{setting}");
    }
    for probe in ["readinessProbe", "livenessProbe"] {
        assert_eq!(container[probe]["httpGet"]["port"], "admin");
    }
    let service = manifest("Service");
    let ports = list(&service, "/spec/ports");
    assert!(ports.iter().all(|offered| port(string_at(offered, "/targetPort")).is_u64()));
    let scraped = string_at(&monitor, "/spec/endpoints/0/port");
    assert!(ports.iter().any(|offered| offered["name"] == scraped && offered["targetPort"] == "admin"));
    let target = &manifest("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"];
    assert_eq!((&target["kind"], &target["name"]), (&deployment["kind"], &deployment["metadata"]["name"]));

    let mount = &container["volumeMounts"][0];
    assert!(variable("CATALOG_SNAPSHOT_FILE").unwrap().starts_with(&format!("{}/", string_at(mount, "/mountPath"))));
    assert_eq!(mount["name"], deployment["spec"]["template"]["spec"]["volumes"][0]["name"]);
    let grace = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap();
    assert!(grace >= max_shutdown_time(variable).as_secs(), "{grace} s");
    // A pod must be removed from the Service before it stops accepting connections.
    let probe = &container["readinessProbe"];
    let removal = probe["periodSeconds"].as_u64().unwrap() * probe["failureThreshold"].as_u64().unwrap();
    assert!(removal < duration(&variable("CATALOG_DRAIN_GRACE").unwrap()).as_secs());
}

#[test]
fn pods_are_restricted_and_read_the_database_url_from_a_secret() {
    for workload in [manifest("Deployment"), yaml("deploy/kubernetes/migrate.yaml")] {
        let pod = &workload["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        // Required by the pod security standard "restricted", plus a read-only root file system.
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(string_at(pod, "/securityContext/seccompProfile/type"), "RuntimeDefault");
        let restrictions = serde_json::json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                                             "capabilities": {"drop": ["ALL"]}});
        assert_eq!(container["securityContext"], restrictions);
        let user = pod["securityContext"]["runAsUser"].to_string();
        assert!(
            text("deploy/Dockerfile").contains(&format!("\nUSER {user}:{user}\n")),
            "{user} is not the image's user"
        );
        let database = list(container, "/env").iter().find(|variable| variable["name"] == "DATABASE_URL").unwrap();
        assert!(string_at(database, "/valueFrom/secretKeyRef/name").starts_with("model-catalog-"));
        assert!(container["resources"]["limits"]["memory"].is_string());
        help(string_at(container, "/args/0"));
    }
}

#[test]
fn manifests_name_the_version_of_the_program() {
    let version = env!("CARGO_PKG_VERSION");
    assert!(text("deploy/kubernetes/kustomization.yaml").contains(&format!("newTag: \"{version}\"")));
    assert!(text("deploy/kubernetes/migrate.yaml").contains(&format!("/model-catalog:{version}\n")));
    assert!(text("CHANGELOG.md").contains(&format!("\n## [{version}]")), "CHANGELOG.md has no section for {version}");
}
