//! The statuses of responses: the label of the metric, the OpenAPI description and the documentation have the same list.

use std::collections::BTreeSet;

use model_catalog::metrics::statuses;

/// Statuses that hyper sends by itself, before the request reaches a route.
const OF_HYPER: [&str; 2] = ["414", "431"];
/// The response to a preflight request, which the OpenAPI description leaves out.
const OF_PREFLIGHT: &str = "204";

#[test]
fn the_metric_the_description_and_the_documentation_list_the_same_statuses() {
    let counted: BTreeSet<String> = statuses().into_iter().map(String::from).collect();

    let description: serde_json::Value =
        serde_json::from_str(include_str!("../../../src/http/handlers/openapi.json")).unwrap();
    let paths = description["paths"].as_object().unwrap();
    let operations = paths.values().flat_map(|path| path.as_object().unwrap().values());
    let responses = operations.filter_map(|operation| operation["responses"].as_object());
    let mut described: BTreeSet<String> = responses.flat_map(|responses| responses.keys().cloned()).collect();
    described.insert(OF_PREFLIGHT.into());
    assert_eq!(described, counted, "src/http/handlers/openapi.json and STATUSES in src/metrics/requests.rs");

    let rows = include_str!("../../../docs/api.md").lines().filter_map(|line| line.strip_prefix("| "));
    let cells = rows.filter_map(|row| row.split(" |").next()).flat_map(|cell| cell.split(", "));
    let is_status = |cell: &&str| cell.len() == 3 && cell.bytes().all(|byte| byte.is_ascii_digit());
    let documented = cells.filter(is_status).filter(|status| !OF_HYPER.contains(status)).map(String::from);
    assert_eq!(documented.collect::<BTreeSet<_>>(), counted, "docs/api.md and STATUSES in src/metrics/requests.rs");
}
