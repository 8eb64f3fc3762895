//! The example schemas of `sql/examples`, each from `CREATE TABLE` in an empty database to live changes over HTTP, served
//! by a role with the documented rights and no others.

use serde_json::{Value, json};

use crate::cli::check::{check_with, fix};
use crate::support::{Db, NOTIFY_ONLY, Server, migrate_without_table, sql};
use crate::sync::delta_plan::{explain, nodes_reading, position, prepared};

/// A database with an example schema, and a server with the documented rights.
struct Example {
    db: Db,
    server: Server,
}

impl Example {
    async fn new(file: &str) -> Self {
        let db = Db::empty().await;
        migrate_without_table(&db.url).await;
        db.sql(file).await;
        let role = format!("server_{}", db.name);
        let rights = "USAGE ON SCHEMA model_catalog TO {}; GRANT SELECT ON ALL TABLES IN SCHEMA model_catalog TO {}";
        db.sql(&format!("CREATE ROLE {role} LOGIN; GRANT {}", rights.replace("{}", &role))).await;
        let url = db.url.replace("user=postgres", &format!("user={role}"));
        let server = Server::start_with(&url, NOTIFY_ONLY).await;
        Self { db, server }
    }

    /// Makes a change and waits until the model has these fields; `null` expects a 404.
    async fn assert_after(&self, change: &str, id: &str, expected: Value) {
        self.db.sql(change).await;
        let matches = async |server: &Server| {
            let model = server.get(&format!("/api/models/{id}")).await;
            match expected.as_object() {
                None => model.status == 404,
                Some(fields) => model.status == 200 && fields.iter().all(|(name, value)| model.json()[name] == *value),
            }
        };
        self.server.until(&format!("{id} is {expected} after {change}"), matches).await;
    }

    /// With many rows, the delta of one changed model must use an index of each of these tables.
    async fn assert_uses_indexes(self, tables: &[&str], fill: &str, change: &str) {
        self.db.sql(&format!("{fill}; ANALYZE")).await;
        let client = prepared(&self.db.url).await;
        let since = position(&client).await;
        sql(&self.db.client, change).await;
        let plan = explain(&client, "", &since).await;
        for table in tables {
            for node in nodes_reading(&plan, table) {
                assert!(node["Node Type"] != "Seq Scan" && plan.to_string().contains("Index Cond"), "{plan:#}");
            }
        }
        assert_eq!(self.server.refreshes("full").await, 1.0, "a change caused a full read");
    }
}

#[tokio::test]
async fn example_with_sizes_in_bytes_is_served() {
    let example = Example::new(include_str!("../../../sql/examples/1_sizes_in_bytes.sql")).await;
    let insert = "INSERT INTO registry.weights VALUES ('flux-dev', 'flux1-dev.safetensors', 'https://example.org/f',
                  23802932552, 'abc', true, 'checkpoints', 'a note')";
    let served = json!({
        "id": "flux-dev", "name": "flux1-dev.safetensors", "download_url": "https://example.org/f", "file_size_gb": 23.8,
        "hash": "abc", "auth_required": true, "auth_provider": "huggingface",
        "save_path": "checkpoints/flux1-dev.safetensors", "dependencies": [], "description": "a note"
    });
    example.assert_after(insert, "flux-dev", served).await;
    let update = "UPDATE registry.weights SET bytes = NULL, gated = false";
    let served = json!({"file_size_gb": null, "auth_required": false, "auth_provider": null});
    example.assert_after(update, "flux-dev", served).await;
    example.assert_after("UPDATE registry.weights SET slug = 'flux'", "flux", json!({"file_size_gb": null})).await;
    example.assert_after("", "flux-dev", Value::Null).await;
    example.assert_after("DELETE FROM registry.weights", "flux", Value::Null).await;
    let fill = "INSERT INTO registry.weights SELECT 'w' || n, 'f', 'https://example.org/f', n, NULL, false, 'x', NULL \
                FROM generate_series(1, 20000) n";
    example.assert_uses_indexes(&["weights"], fill, "UPDATE registry.weights SET note = 'new' WHERE slug = 'w7'").await;
}

#[tokio::test]
async fn example_with_dependencies_in_a_join_table_is_served() {
    let example = Example::new(include_str!("../../../sql/examples/2_dependencies_in_a_join_table.sql")).await;
    let insert = "INSERT INTO assets.asset SELECT n, 'asset ' || n, 'https://example.org/' || n, 0.335, NULL, NULL, \
                  'vae/' || n, NULL FROM generate_series(1, 12) n";
    example.assert_after(insert, "1", json!({"name": "asset 1", "file_size_gb": 0.335, "dependencies": []})).await;
    let needs = |ids: &[&str]| json!({ "dependencies": ids });
    example.assert_after("INSERT INTO assets.needs VALUES (1, 10), (1, 9), (2, 9)", "1", needs(&["9", "10"])).await;
    example.assert_after("", "2", needs(&["9"])).await;
    example.assert_after("UPDATE assets.needs SET other = 11 WHERE other = 10", "1", needs(&["9", "11"])).await;
    example.assert_after("UPDATE assets.needs SET asset = 3 WHERE asset = 1 AND other = 11", "1", needs(&["9"])).await;
    example.assert_after("", "3", needs(&["11"])).await;
    example.assert_after("DELETE FROM assets.needs WHERE asset = 2", "2", needs(&[])).await;
    let update = "UPDATE assets.asset SET provider = 'civitai' WHERE id = 3";
    example
        .assert_after(update, "3", json!({"auth_required": true, "auth_provider": "civitai", "dependencies": ["11"]}))
        .await;
    // A deleted asset also disappears from the dependencies of others.
    example.assert_after("DELETE FROM assets.asset WHERE id = 9", "9", Value::Null).await;
    example.assert_after("", "1", needs(&[])).await;
    let fill = "INSERT INTO assets.asset SELECT n, 'n', 'https://example.org/n', 1, NULL, NULL, 'x', NULL \
                FROM generate_series(100, 20000) n; \
                INSERT INTO assets.needs SELECT n, n - 1 FROM generate_series(101, 20000) n";
    let change = "UPDATE assets.needs SET other = 200 WHERE asset = 777";
    example.assert_uses_indexes(&["asset", "needs"], fill, change).await;
}

#[tokio::test]
async fn example_with_camel_case_and_sizes_as_text_is_served() {
    let example = Example::new(include_str!("../../../sql/examples/3_camel_case_and_sizes_as_text.sql")).await;
    let insert =
        "INSERT INTO studio.\"ModelFile\" VALUES ('flux-dev', 'flux1-dev.safetensors', 'https://example.org/f',
                  '11.9GB', 'abc', 'HF_TOKEN', 'models/checkpoints/models/f.safetensors', '{ae,clip-l}', NULL)";
    let served = json!({
        "id": "flux-dev", "name": "flux1-dev.safetensors", "download_url": "https://example.org/f", "file_size_gb": 11.9,
        "hash": "abc", "auth_required": true, "auth_provider": "huggingface",
        "save_path": "checkpoints/models/f.safetensors", "dependencies": ["ae", "clip-l"], "description": null
    });
    example.assert_after(insert, "flux-dev", served).await;
    for (text, size) in [
        ("335MB", json!(0.335)),
        ("1.5TB", json!(1500)),
        (" 2.50 gb ", json!(2.5)),
        ("820 KB", json!(0.00082)),
        ("unknown", json!(null)),
        ("4.2Gb", json!(4.2)),
        ("", json!(null)),
        ("7 GiB", json!(null)),
        ("12", json!(null)),
        ("-1GB", json!(null)),
        ("6MB", json!(0.006)),
        ("1.2.3GB", json!(null)),
    ] {
        // Another field changes as well, to tell a size that stays NULL from the previous row.
        let update = format!("UPDATE studio.\"ModelFile\" SET \"fileSize\" = '{text}', description = '{text}!'");
        let update = update.replace("description", "\"description\"");
        let expected = json!({"file_size_gb": size, "description": format!("{text}!")});
        example.assert_after(&update, "flux-dev", expected).await;
    }
    for (token, required, provider) in [
        ("'CIVITAI_TOKEN'", true, json!("civitai")),
        ("NULL", false, json!(null)),
        ("'HF_TOKEN'", true, json!("huggingface")),
        ("''", false, json!(null)),
    ] {
        let update = format!("UPDATE studio.\"ModelFile\" SET \"authEnv\" = {token}");
        example.assert_after(&update, "flux-dev", json!({"auth_required": required, "auth_provider": provider})).await;
    }
    let update = "UPDATE studio.\"ModelFile\" SET \"savePath\" = 'loras/x.safetensors', \"dependsOn\" = '{}'";
    example.assert_after(update, "flux-dev", json!({"save_path": "loras/x.safetensors", "dependencies": []})).await;
    example.assert_after("DELETE FROM studio.\"ModelFile\"", "flux-dev", Value::Null).await;
    let fill = "INSERT INTO studio.\"ModelFile\" SELECT 'm' || n, 'f', 'https://example.org/f', '1GB', NULL, NULL, \
                'models/x', '{}', NULL FROM generate_series(1, 20000) n";
    let change = "UPDATE studio.\"ModelFile\" SET \"fileSize\" = '2GB' WHERE \"modelId\" = 'm7'";
    example.assert_uses_indexes(&["ModelFile"], fill, change).await;
}

#[tokio::test]
async fn example_of_an_orm_with_surrogate_ids_is_served() {
    let example = Example::new(include_str!("../../../sql/examples/4_orm_with_surrogate_ids.sql")).await;
    let insert = "INSERT INTO app.\"Provider\" (slug, \"tokenRequired\") VALUES ('huggingface', true);
        INSERT INTO app.\"Model\" (slug, kind, description, \"providerId\") VALUES ('flux', 'CHECKPOINT', 'big', 1);
        INSERT INTO app.\"ModelFile\" (\"modelId\", \"fileName\", url, \"sizeBytes\", sha256)
            SELECT id, 'f.safetensors', 'https://example.org/f', 23802932552, 'abc' FROM app.\"Model\"";
    let served = json!({
        "id": "flux", "name": "f.safetensors", "download_url": "https://example.org/f", "file_size_gb": 23.8,
        "hash": "abc", "auth_required": true, "auth_provider": "huggingface", "save_path": "checkpoints/f.safetensors",
        "dependencies": [], "description": "big"
    });
    example.assert_after(insert, "flux", served).await;

    // A write of the application to each table, by surrogate ids.
    let add = "WITH new AS (INSERT INTO app.\"Model\" (slug, kind) VALUES ('ae', 'VAE'), ('draft', 'VAE') RETURNING *)
        INSERT INTO app.\"ModelFile\" (\"modelId\", \"fileName\", url) SELECT id, slug, 'https://example.org/' || slug FROM new
        WHERE slug <> 'draft'";
    example
        .assert_after(add, "ae", json!({"save_path": "vae/ae", "auth_required": false, "auth_provider": null}))
        .await;
    example.assert_after("", "draft", Value::Null).await;
    let id = |slug: &str| format!("(SELECT id FROM app.\"Model\" WHERE slug = '{slug}')");
    let needs = |ids: &[&str]| json!({ "dependencies": ids });
    let connect = format!("INSERT INTO app.\"_ModelDependencies\" VALUES ({}, {})", id("flux"), id("ae"));
    example.assert_after(&connect, "flux", needs(&["ae"])).await;
    let file = format!("UPDATE app.\"ModelFile\" SET url = 'https://example.org/2' WHERE \"modelId\" = {}", id("flux"));
    example.assert_after(&file, "flux", json!({"download_url": "https://example.org/2"})).await;
    let provider = "UPDATE app.\"Provider\" SET slug = 'civitai', \"tokenRequired\" = false";
    example.assert_after(provider, "flux", json!({"auth_required": false, "auth_provider": "civitai"})).await;
    let kind = "UPDATE app.\"Model\" SET kind = 'LORA' WHERE slug = 'flux'";
    example.assert_after(kind, "flux", json!({"save_path": "loras/f.safetensors"})).await;
    example.db.sql("ALTER TYPE app.\"ModelKind\" ADD VALUE 'CLIP'").await;
    let kind = "UPDATE app.\"Model\" SET kind = 'CLIP' WHERE slug = 'flux'";
    example.assert_after(kind, "flux", json!({"save_path": "clip/f.safetensors"})).await;

    // A slug is renamed, then two models swap theirs. The dependencies of others follow.
    let rename = "UPDATE app.\"Model\" SET slug = 'ae-2' WHERE slug = 'ae'";
    example.assert_after(rename, "ae-2", json!({"save_path": "vae/ae"})).await;
    example.assert_after("", "ae", Value::Null).await;
    example.assert_after("", "flux", needs(&["ae-2"])).await;
    let swap = "BEGIN; UPDATE app.\"Model\" SET slug = 'other' WHERE slug = 'flux';
        UPDATE app.\"Model\" SET slug = 'flux' WHERE slug = 'ae-2'; UPDATE app.\"Model\" SET slug = 'ae-2' WHERE slug = 'other'; COMMIT";
    example.assert_after(swap, "flux", json!({"save_path": "vae/ae", "dependencies": []})).await;
    example.assert_after("", "ae-2", json!({"save_path": "clip/f.safetensors", "dependencies": ["flux"]})).await;

    // Soft deletes, and the cascade of a real one.
    let delete = "UPDATE app.\"Model\" SET \"deletedAt\" = now() WHERE slug = 'flux'";
    example.assert_after(delete, "flux", Value::Null).await;
    example.assert_after("", "ae-2", needs(&[])).await;
    let restore = "UPDATE app.\"Model\" SET \"deletedAt\" = NULL";
    example.assert_after(restore, "ae-2", needs(&["flux"])).await;
    example.assert_after("DELETE FROM app.\"Model\" WHERE slug = 'flux'", "flux", Value::Null).await;
    example.assert_after("", "ae-2", needs(&[])).await;
    let disconnect = "DELETE FROM app.\"ModelFile\"";
    example.assert_after(disconnect, "ae-2", Value::Null).await;

    // All parents in one statement, all children in another one, without an index on the foreign key.
    let parents = "INSERT INTO app.\"Model\" (slug, kind, \"providerId\") SELECT 'm' || n, 'VAE', 1 FROM generate_series(1, 20000) n";
    example.db.sql(parents).await;
    let children = "INSERT INTO app.\"ModelFile\" (\"modelId\", \"fileName\", url)
        SELECT id, slug, 'https://example.org/' || slug FROM app.\"Model\" WHERE slug LIKE 'm%'";
    example.assert_after(children, "m20000", json!({"save_path": "vae/m20000", "auth_provider": "civitai"})).await;
    assert_eq!(example.server.get("/readyz").await.json()["models"], 20_000);

    example.db.sql("ANALYZE").await;
    let fixes: Vec<String> =
        check_with(&example.db.url, &[]).bad().iter().map(|finding| fix(finding).to_owned()).collect();
    assert_eq!(fixes, ["CREATE INDEX CONCURRENTLY ON app.\"ModelFile\" (\"modelId\");"]);
    example.db.sql(&fixes[0]).await;
    check_with(&example.db.url, &[]).clean();
}
