//! The files around the cache of a site; machine::cache runs its nginx.

use serde_json::Value;

use super::systemd_unit::analyze;
use super::{list, string_at, text, yaml};
use crate::support::TempFolder;

const UNIT: &str = "deploy/cache/model-cache.service";
const START: &str = "deploy/cache/start.sh";

/// The documents of a file by kind.
fn manifest(kind: &str) -> Value {
    let file = text("deploy/cache/kubernetes.yaml");
    let documents = file.split("\n---\n").map(|document| serde_saphyr::from_str::<Value>(document).unwrap());
    documents.into_iter().find(|document| document["kind"] == kind).unwrap()
}

#[test]
fn pod_of_the_cache_mounts_what_its_nginx_uses() {
    let (set, service, listed) =
        (manifest("StatefulSet"), manifest("Service"), yaml("deploy/cache/kustomization.yaml"));
    let pod = &set["spec"]["template"];
    assert_eq!(set["spec"]["selector"]["matchLabels"], pod["metadata"]["labels"]);
    assert_eq!(service["spec"]["selector"], pod["metadata"]["labels"]);
    assert_eq!(set["spec"]["serviceName"], service["metadata"]["name"]);
    let (spec, container) = (&pod["spec"], &pod["spec"]["containers"][0]);
    let port = &container["ports"][0]["containerPort"];
    assert_eq!(&service["spec"]["ports"][0]["port"], port);
    assert_eq!(service["spec"]["ports"][0]["targetPort"], container["ports"][0]["name"]);
    let config = text("deploy/cache/nginx.conf");
    assert!(config.contains(&format!("listen {port};")) && config.contains(&format!("127.0.0.1:{port}/lacking")));
    // Required by the pod security standard "restricted", plus a read-only root file system.
    assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
    assert_eq!(string_at(spec, "/securityContext/seccompProfile/type"), "RuntimeDefault");
    let restrictions = serde_json::json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                                         "capabilities": {"drop": ["ALL"]}});
    assert_eq!(container["securityContext"], restrictions);

    let claims = list(&set, "/spec/volumeClaimTemplates").iter().map(|claim| &claim["metadata"]["name"]);
    let volumes: Vec<_> = list(spec, "/volumes").iter().map(|volume| &volume["name"]).chain(claims).collect();
    let mounts = list(container, "/volumeMounts");
    assert!(mounts.iter().all(|mount| volumes.contains(&&mount["name"])), "{mounts:?}");
    let paths: Vec<_> = mounts.iter().map(|mount| string_at(mount, "/mountPath")).collect();
    for path in ["/run/model-cache", "/var/cache/model-cache", "/var/log/model-cache"] {
        assert!(
            paths.contains(&path) && config.contains(&format!(" {path}/")) || config.contains(&format!(" {path} "))
        );
    }
    assert!(paths.contains(&"/etc/nginx/model-cache.conf") && text(START).contains("-c /etc/nginx/model-cache.conf "));
    assert_eq!(listed["configMapGenerator"][0]["name"], spec["volumes"][0]["configMap"]["name"]);
    assert_eq!(listed["configMapGenerator"][0]["files"], serde_json::json!(["nginx.conf", "start.sh"]));
    let program = string_at(container, "/command/1");
    assert!(program == format!("{}/start.sh", string_at(&mounts[0], "/mountPath")), "{program}");
    // The cache and what it leaves free fit on the volume.
    let gigabytes = |name: &str| {
        let value = config.split(&format!(" {name}=")).nth(1).unwrap().split('g').next().unwrap();
        value.parse::<u64>().unwrap()
    };
    let claim = string_at(&set, "/spec/volumeClaimTemplates/0/spec/resources/requests/storage");
    let size: u64 = claim.trim_end_matches("Gi").parse().unwrap();
    assert!(size >= gigabytes("max_size") + gigabytes("min_free"), "{claim}");
}

#[test]
fn systemd_verifies_the_unit_of_the_cache() {
    let directory = TempFolder::new("cache-unit");
    let (path, script) = (directory.join("model-cache.service"), directory.join("start.sh"));
    std::fs::copy(super::repository_path(START), &script).unwrap();
    let unit = text(UNIT).replace("/usr/local/lib/model-cache/start.sh", script.to_str().unwrap());
    assert!(unit.contains(script.to_str().unwrap()));
    std::fs::write(&path, unit).unwrap();
    let (valid, printed) = analyze(&["verify", "--man=no", path.to_str().unwrap()]);
    let warnings: Vec<_> = printed.lines().filter(|line| line.contains("model-cache")).collect();
    assert!(valid && warnings.is_empty(), "{printed}");
    let (_, printed) = analyze(&["security", "--offline=true", "--no-pager", path.to_str().unwrap()]);
    let score = printed.split("model-cache.service: ").nth(1).unwrap_or_else(|| panic!("{printed}"));
    assert!(score.split(' ').next().unwrap().parse::<f64>().unwrap() < 2.5, "{printed}");
}
