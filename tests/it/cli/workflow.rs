//! `model-catalog import` of ComfyUI workflows: embedded models in every place, and workflows without any.

use serde_json::{Value, json};

use super::import::import;
use crate::support::Db;

pub const WORKFLOW: &str = include_str!("workflow.json");

const DRY: &str = "\
added checkpoints~painter-xl.safetensors
added loras~ink.safetensors
added vae~small.vae
rejected .nodes[1].properties.models[0] ink.safetensors: .nodes[2].properties.models[0] has the same id \"loras~ink.safetensors\" and other values, and only one is accepted
rejected .nodes[1].properties.models[1] wash.safetensors: save_path escapes the models folder: it must be relative to the models folder, without `..` and without backslashes
3 added, 0 changed, 0 unchanged, 2 rejected, 1 repeated (dry run: nothing was written)
";

const HASH: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

/// The workflow, edited.
fn workflow(edit: impl FnOnce(&mut Value)) -> String {
    let mut workflow: Value = serde_json::from_str(WORKFLOW).unwrap();
    edit(&mut workflow);
    workflow.to_string()
}

#[tokio::test]
async fn embedded_models_of_a_workflow_are_imported() {
    let db = Db::new().await;
    assert_eq!(import(&db.url, &["--dry-run"], WORKFLOW), (3, DRY.into()));
    let (status, printed) = import(&db.url, &[], WORKFLOW);
    assert!(status == 3 && printed.ends_with("3 added, 0 changed, 0 unchanged, 2 rejected, 1 repeated\n"), "{printed}");
    let row = "SELECT concat_ws(' ', name, download_url, file_size_gb, hash, auth_required, save_path, dependencies)
               FROM models WHERE id = 'checkpoints~painter-xl.safetensors'";
    let expected = format!(
        "painter-xl.safetensors https://example.org/painter/resolve/main/painter-xl.safetensors?download=true {HASH} f \
         checkpoints/painter-xl.safetensors []"
    );
    assert_eq!(db.sql(row).await, Some(expected));
}

#[tokio::test]
async fn columns_that_a_workflow_lacks_are_preserved() {
    let db = Db::new().await;
    import(&db.url, &[], WORKFLOW);
    let theirs =
        "file_size_gb = 6.94, description = 'd', auth_required = true, auth_provider = 'p', dependencies = '[\"x\"]'";
    db.sql(&format!("UPDATE models SET {theirs}; UPDATE models SET hash = 'mine' WHERE id = 'vae~small.vae'")).await;
    let again = workflow(|workflow| workflow["nodes"][1]["properties"]["models"] = json!([]));
    let (status, printed) = import(&db.url, &[], &again);
    assert_eq!((status, printed.as_str()), (0, "0 added, 0 changed, 3 unchanged, 0 rejected, 1 repeated\n"));
    let moved = again.replace("https://example.org/small", "https://mirror.example/small");
    assert_eq!(import(&db.url, &[], &moved).1, "0 added, 1 changed, 2 unchanged, 0 rejected, 1 repeated\n");
    let row = "SELECT concat_ws(' ', hash, file_size_gb, description, auth_required, auth_provider, dependencies)
               FROM models WHERE id = 'vae~small.vae'";
    assert_eq!(db.sql(row).await.as_deref(), Some("mine 6.94 d t p [\"x\"]"));
}

#[tokio::test]
async fn hash_in_any_node_is_used_in_any_order() {
    for reversed in [false, true] {
        let db = Db::new().await;
        let file = |hash: Value| {
            let mut file =
                json!({"name": "a", "url": "https://example.org/a", "directory": "vae", "hash_type": "SHA256"});
            file["hash"] = hash;
            json!({"id": 1, "properties": {"models": [file]}})
        };
        let mut nodes = vec![file(Value::Null), file(HASH.into()), file(Value::Null)];
        if reversed {
            nodes.swap(0, 1);
        }
        let text = json!({"nodes": nodes}).to_string();
        assert_eq!(
            import(&db.url, &[], &text),
            (0, "1 added, 0 changed, 0 unchanged, 0 rejected, 2 repeated\n".into())
        );
        assert_eq!(db.sql("SELECT hash FROM models").await.as_deref(), Some(HASH));
    }
}

#[tokio::test]
async fn workflows_in_api_format_are_imported() {
    let db = Db::new().await;
    let file = json!({"name": "a.safetensors", "url": "https://example.org/a", "directory": "vae"});
    let node =
        json!({"class_type": "VAELoader", "inputs": {"vae_name": "a.safetensors"}, "_meta": {"title": "Load VAE"}});
    let mut with_models = node.clone();
    with_models["properties"] = json!({ "models": [file] });
    let saved = json!({"nodes": [{"id": 3, "type": "VAELoader", "properties": {"models": [file]}}], "links": []});
    for (input, path) in [
        // As ComfyUI exports it, with the properties that some tools keep.
        (json!({"3": node, "7": with_models}), r#".["7"].properties.models[0]"#),
        // The body of a request to /prompt.
        (
            json!({"client_id": "x", "prompt": {"3": node}, "extra_data": {"extra_pnginfo": {"workflow": saved}}}),
            ".extra_data.extra_pnginfo.workflow.nodes[0].properties.models[0]",
        ),
        (json!({"workflow": saved, "output": {"3": node}}), ".workflow.nodes[0].properties.models[0]"),
    ] {
        let (status, printed) = import(&db.url, &["--dry-run"], &input.to_string());
        assert!(status == 0 && printed.starts_with("added vae~a.safetensors\n1 added"), "{input}: {printed}");
        let broken = input.to_string().replace("https://example.org/a", "no address");
        let (_, printed) = import(&db.url, &["--dry-run"], &broken);
        assert!(printed.contains(&format!("rejected {path} a.safetensors: download_url")), "{broken}: {printed}");
    }
}

#[tokio::test]
async fn workflow_without_embedded_models_is_an_error_with_the_reason() {
    let db = Db::new().await;
    let node = json!({"class_type": "VAELoader", "inputs": {"vae_name": "a.safetensors"}});
    for input in [
        json!({"nodes": [], "links": [], "version": 0.4}),
        json!({"nodes": [{"id": 1, "type": "VAELoader", "properties": {"models": []}}], "models": []}),
        json!({"3": node}),
        json!({"prompt": {"3": node}, "client_id": "x"}),
    ] {
        let (status, printed) = import(&db.url, &[], &input.to_string());
        for part in ["a ComfyUI workflow without embedded models", "properties.models", "API format"] {
            assert!(status == 1 && printed.contains(part), "{input}: {status} {printed}");
        }
    }
}

#[tokio::test]
async fn unusable_embedded_models_are_rejected_with_their_path() {
    let db = Db::new().await;
    let file = |field: &str, value: Value| {
        let mut file = json!({"name": "a", "url": "https://example.org/a", "directory": "vae"});
        file[field] = value;
        file
    };
    let models = json!([
        file("directory", json!("")),
        file("directory", Value::Null),
        file("name", json!("")),
        file("url", json!("ftp://example.org/a")),
        file("hash", json!("0123")),
        file("hash", json!(7)),
        {"name": "a", "directory": "vae"},
        file("directory", json!("/etc")),
        file("directory", json!("vae\\x")),
    ]);
    let (status, printed) = import(&db.url, &[], &json!({"nodes": [{"properties": {"models": models}}]}).to_string());
    assert_eq!(status, 3, "{printed}");
    for (number, reason) in [
        (0, "directory is empty"),
        (1, "invalid type: null"),
        (2, "name \"\" is not that of a file"),
        (3, "download_url has the scheme `ftp`"),
        (4, "hash \"0123\" is not that of a known kind"),
        (5, "invalid type: integer `7`"),
        (6, "missing field `url`"),
        (7, "save_path is absolute"),
        (8, "save_path has a backslash"),
    ] {
        let line =
            printed.lines().find(|line| line.starts_with(&format!("rejected .nodes[0].properties.models[{number}]")));
        assert!(line.is_some_and(|line| line.contains(reason)), "{number}: no {reason} in {printed}");
    }
    assert_eq!(db.sql("SELECT count(*) FROM models").await.as_deref(), Some("0"));
}

#[tokio::test]
async fn workflows_as_python_and_runpod_write_them_are_imported() {
    let db = Db::new().await;
    let node = r#"{"id": 1, "seed": NaN, "limits": [-Infinity, Infinity], "title": "NaN \"x\"", "properties": {"models":
        [{"name": "a.safetensors", "url": "https://example.org/a", "directory": "models/checkpoints"}]}}"#;
    let saved = format!(r#"{{"nodes": [{node}]}}"#);
    let (status, printed) = import(&db.url, &[], &saved);
    assert_eq!((status, printed.as_str()), (0, "1 added, 0 changed, 0 unchanged, 0 rejected\n"));
    assert_eq!(db.sql("SELECT save_path FROM models").await.as_deref(), Some("checkpoints/a.safetensors"));
    let request = format!(r#"{{"input": {{"workflow": {saved}, "images": []}}}}"#);
    let (status, printed) = import(&db.url, &[], &request);
    assert_eq!((status, printed.as_str()), (0, "0 added, 0 changed, 1 unchanged, 0 rejected\n"));
}
