//! Rejected and suspicious rows: each is listed with its reason and a statement that selects it.

use super::{break_and_fix, check, check_with, fix, run};
use crate::support::Db;

#[tokio::test]
async fn rejected_rows_are_listed_up_to_a_limit() {
    let db = Db::lenient().await;
    db.add("good").await;
    db.sql(
        "INSERT INTO models (id, name, download_url, save_path) SELECT 'bad-' || n, 'x', 'https://example.org/x', '../x' \
         FROM generate_series(1, 25) n",
    )
    .await;
    let checked = check(&db);
    assert_eq!((checked.status, checked.bad().len()), (1, 21), "{checked:#?}");
    let first = checked.bad()[0];
    assert_eq!((first["id"].as_str(), first["level"].as_str()), (Some("bad-1"), Some("problem")));
    assert!(first["text"].as_str().unwrap().starts_with("save_path escapes the models folder: "), "{first}");
    assert_eq!(fix(first), "SELECT * FROM model_catalog.entries WHERE id = 'bad-1';");
    let last = checked.bad()[20];
    assert!(last["text"].as_str().unwrap().starts_with("and 5 more"), "{last}");
    db.sql(fix(last)).await;
    assert_eq!(check_with(&db.url, &[("CATALOG_CHECK_LIMIT", "100")]).bad().len(), 25);
    db.sql("UPDATE models SET save_path = 'x/' || id").await;
    check(&db).clean();

    // Other allowed schemes reject other rows; the statement for the remaining rows uses the same schemes.
    let settings = [("CATALOG_URL_SCHEMES", "s3,ftp"), ("CATALOG_CHECK_LIMIT", "1")];
    let checked = check_with(&db.url, &settings);
    let schemes = "triggers allow the URL schemes http, https, but CATALOG_URL_SCHEMES is s3, ftp";
    assert_eq!(checked.bad()[0]["text"], schemes, "{checked:#?}");
    db.sql(fix(checked.bad()[0])).await;
    let checked = check_with(&db.url, &settings);
    assert_eq!(checked.bad().len(), 2, "{checked:#?}");
    assert_eq!(fix(checked.bad()[1]), "SELECT * FROM model_catalog.problems(ARRAY['s3', 'ftp']);");
    let count = fix(checked.bad()[1]).replace('*', "count(*)");
    assert_eq!(db.sql(&count).await.as_deref(), Some("26"));
}

#[tokio::test]
async fn hostile_ids_are_escaped_and_found_by_the_printed_statement() {
    let db = Db::lenient().await;
    let ids =
        ["\u{1b}[2J\u{7}", "two\nlines", "it's \\ \"quoted\"", "\u{202e}txt.exe", "\u{85}", "größe", "$1 ' OR true"];
    for id in ids {
        db.client
            .execute("INSERT INTO models (id, name, download_url, save_path) VALUES ($1, 'x', 'none', 'x')", &[&id])
            .await
            .unwrap();
    }
    let long = "l".repeat(2000);
    db.client
        .execute("INSERT INTO models (id, name, download_url, save_path) VALUES ($1, 'x', 'none', 'x')", &[&long])
        .await
        .unwrap();
    let (status, printed) = run(&db.url, &[], &[]);
    assert_eq!(status, 1, "{printed}");
    let is_escaped = |c: char| c == '\n' || !(c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c));
    assert!(printed.chars().all(is_escaped) && printed.len() < 5000, "{printed:?}");
    let checked = check(&db);
    assert_eq!(checked.bad().len(), ids.len() + 1, "{checked:#?}");
    for finding in checked.bad() {
        assert_eq!(db.sql(fix(finding)).await.as_deref(), finding["id"].as_str());
        let all = fix(finding).replace('*', "count(*)");
        assert_eq!(db.sql(&all).await.as_deref(), Some("1"), "{finding}");
    }
}

#[tokio::test]
async fn dangling_and_cyclic_dependencies_and_unknown_hashes_are_reported() {
    let db = Db::lenient().await;
    for id in ["a", "b", "c", "d", "self"] {
        db.add(id).await;
    }
    let undo =
        "UPDATE models SET dependencies = '[]', hash = NULL, save_path = 'x/' || id, download_url = 'https://a/b'";
    for (change, subject, id, text) in [
        (
            "SET dependencies = '[\"b\", \"no such\"]' WHERE id = 'a'",
            "dependency",
            "a",
            "it depends on \"no such\", which does not exist",
        ),
        ("SET dependencies = '[\"self\"]' WHERE id = 'self'", "dependency", "self", "\"self\" → \"self\""),
        (
            "SET download_url = 'https://example.org/x?type=Model&token=hunter2' WHERE id = 'd'",
            "secret",
            "d",
            "download_url contains \"token\"",
        ),
        ("SET hash = 'deadbeef1' WHERE id = 'c'", "hash", "c", "\"deadbeef1\" is of an unknown kind"),
        (
            "SET save_path = './x//a', download_url = 'https://a/c' WHERE id = 'b'",
            "save_path",
            "b",
            "\"a\" has the same save_path and other content",
        ),
    ] {
        db.sql(&format!("UPDATE models {change}")).await;
        let checked = check(&db);
        let finding = checked.only("warning", subject, text);
        assert_eq!(finding["id"], id);
        assert!(!finding["text"].as_str().unwrap().contains("hunter2"), "{finding}");
        assert_eq!(db.sql(fix(finding)).await.as_deref(), Some(id));
        db.sql(undo).await;
        check(&db).clean();
    }
    let next =
        "UPDATE models SET dependencies = jsonb_build_array(CASE id WHEN 'a' THEN 'b' WHEN 'b' THEN 'c' ELSE 'a' END)";
    db.sql(&format!("{next} WHERE id IN ('a', 'b', 'c')")).await;
    check(&db).only("warning", "dependency", "it depends on itself: ");
    assert_eq!(run(&db.url, &["--strict"], &[]).0, 1);
    assert_eq!(run(&db.url, &[], &[("CATALOG_CHECK_STRICT", "true")]).0, 1);
    db.sql(undo).await;

    // A rejected row still exists, so a dependency on it is not dangling.
    let reject =
        "UPDATE models SET save_path = '/x' WHERE id = 'b'; UPDATE models SET dependencies = '[\"b\"]' WHERE id = 'a'";
    db.sql(reject).await;
    check(&db).only("problem", "row", "save_path is absolute");
    let fix_it = "UPDATE models SET save_path = 'x' WHERE id = 'b'";
    db.sql(fix_it).await;
    check(&db).clean();
    break_and_fix(&db, "DROP TRIGGER model_catalog_insert ON models", "problem", "source", "INSERT").await;
}
