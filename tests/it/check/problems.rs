//! The rules in SQL are the rules of the program: verdict and words, row by row.

use std::collections::BTreeMap;

use super::{check_with, fix};
use crate::support::Db;

/// A table without any constraint under the view.
const LOOSE: &str = "
    CREATE TABLE loose (id text, name text, download_url text, file_size_gb numeric, hash text, auth_required boolean,
                        auth_provider text, save_path text, dependencies jsonb, description text);
    CREATE INDEX ON loose (id);
    CREATE OR REPLACE VIEW model_catalog.entries AS SELECT * FROM loose;
    SELECT model_catalog.watch('loose', 'id')";

const TEXTS: [&str; 16] = [
    "",
    " ",
    "x",
    "größe",
    "日本語",
    "a\tb",
    "\u{1}",
    "\u{1f}",
    "\u{7f}",
    "\u{80}",
    "a\u{9f}b",
    "\u{a0}",
    "\u{200b}",
    "\u{202e}",
    "'; DROP TABLE loose; --",
    "%s %1$s",
];
const PATHS: [&str; 24] = [
    "/",
    "/a",
    "a/",
    "//",
    "a//b",
    ".",
    "./a",
    "..",
    "../a",
    "a/..",
    "a/../b",
    "a/..b",
    "a..",
    "...",
    "a/.../b",
    "\\",
    "a\\b",
    "..\\a",
    "C:\\x",
    "C:/x",
    "~/x",
    "%2e%2e/x",
    "..%2fx",
    "..\u{2215}x",
];
const SIZES: [&str; 12] = [
    "0",
    "0.00",
    "23.80",
    "-0.01",
    "-1",
    "NaN",
    "Infinity",
    "-Infinity",
    "1e308",
    "1.7976931348623157e308",
    "1.7976931348623159e308",
    "1e400",
];
const DEPENDENCIES: [&str; 18] = [
    "[]",
    "[\"a\"]",
    "[\"a\",\"b\"]",
    "[\"\"]",
    "null",
    "{}",
    "{\"0\": \"a\"}",
    "\"a\"",
    "1",
    "true",
    "[1]",
    "[null]",
    "[true]",
    "[[]]",
    "[[\"a\"]]",
    "[{}]",
    "[\"a\", 1]",
    "[\"a\\u0001\", \"b\\u0085\"]",
];
const URLS: [&str; 66] = [
    "http://a",
    "https://a.b/c",
    "HTTPS://A.B",
    "https:a",
    "https:/a",
    "https:////a",
    "https:\\\\a\\b",
    " https://a ",
    "ftp://a",
    "file:///a",
    "s3://b/k",
    "javascript:1",
    "data:,x",
    "mailto:a@b",
    "a",
    "/a",
    "//a/b",
    "?a",
    "#a",
    ":",
    "1http://a",
    "ht tp://a",
    "http",
    "http:",
    "http://",
    "https:///",
    "http:///a",
    "https://?q",
    "https://#f",
    "https://a:",
    "https://a:1",
    "https://a:65535",
    "https://a:65536",
    "https://a:0000000080",
    "https://a:-1",
    "https://a:x",
    "https://a:1x/",
    "https://:80",
    "https://u@a",
    "https://u:p@a:1/",
    "https://@a",
    "https://u@",
    "https://@",
    "https://u@/x",
    "https://a b",
    "https://a%",
    "https://a%zz",
    "https://a%2fb",
    "https://a%00",
    "https://a<b",
    "https://a|b",
    "https://a^b",
    "https://[::1]",
    "https://[::1]:80/",
    "https://[::1",
    "https://[]",
    "https://[1:2:3:4:5:6:7:8:9]",
    "https://[::ffff:1.2.3.4]",
    "https://[::1.2.3.04]",
    "https://[1.2.3.4]",
    "https://1.2.3.4",
    "https://256.1.1.1",
    "https://1.2.3",
    "https://0x7f.1",
    "https://08.1",
    "https://a.1",
];

fn quoted(value: Option<&str>) -> String {
    value.map_or("NULL".into(), |value| postgres_protocol::escape::escape_literal(value).trim_start().into())
}

/// Rows that are good but for one column, by their id; and then some that are bad in two.
fn rows() -> Vec<[Option<String>; 10]> {
    let good = |number: usize| {
        [
            Some(format!("row-{number}")),
            Some("x".into()),
            Some("https://example.org/x".into()),
            None,
            None,
            Some("true".into()),
            None,
            Some("a/b".into()),
            Some("[]".into()),
            None,
        ]
    };
    let mut rows: Vec<[Option<String>; 10]> = Vec::new();
    let mut add = |changes: &[(usize, Option<&str>)]| {
        let mut row = good(rows.len());
        changes.iter().for_each(|(column, value)| row[*column] = value.map(str::to_owned));
        rows.push(row);
    };
    for column in 0..10 {
        add(&[(column, None)]);
    }
    for (column, values) in [
        (0, &TEXTS[..]),
        (1, &TEXTS),
        (2, &TEXTS),
        (4, &TEXTS),
        (6, &TEXTS),
        (7, &TEXTS),
        (9, &TEXTS),
        (7, &PATHS),
        (3, &SIZES),
        (8, &DEPENDENCIES),
        (2, &URLS),
    ] {
        values.iter().for_each(|value| add(&[(column, Some(value))]));
    }
    // The first fault in the order of the columns is the one that is said.
    let bad = [(1, "\u{1}"), (2, "none"), (3, "-1"), (4, "\u{2}"), (7, "../x"), (8, "{}"), (9, "\u{3}")];
    for one in bad {
        for other in bad {
            add(&[(one.0, Some(one.1)), (other.0, Some(other.1))]);
        }
    }
    // Several rows with one id: good ones, and a bad one among them.
    for (id, path) in [("twice", "a"), ("twice", "b"), ("twice", "c"), ("mixed", "a"), ("mixed", "../a"), ("once", "a")]
    {
        add(&[(0, Some(id)), (7, Some(path))]);
    }
    rows
}

/// Addresses put together by chance from pieces that matter to a parser.
fn random_urls() -> Vec<String> {
    let pieces = [
        "http", "https", "ftp", ":", "/", "//", "://", "\\", "a", "B.c", "a..b", "-", "_", ".", "1", "0x1", "255",
        "256", "09", "[", "]", "::", "[::1]", "[1:2::3]", "@", "u:p@", "?", "#", ":80", ":99999", " ", "%41", "%2F",
        "%", "<", "\"", "{", "~",
    ];
    let mut random = fastrand::Rng::with_seed(20);
    let url = |_| {
        let start = ["", "https://", "http://", "https://", "https:"][random.usize(0..5)];
        let rest = (0..random.usize(1..6)).map(|_| pieces[random.usize(0..pieces.len())]);
        start.to_owned() + &rest.collect::<String>()
    };
    // Percent-encoded bytes beyond ASCII are what SQL does not judge.
    (0..6_000).map(url).filter(|url| !url.contains("%a")).collect()
}

async fn fill(db: &Db, rows: &[[Option<String>; 10]]) {
    for some in rows.chunks(500) {
        let row = |row: &[Option<String>; 10]| {
            let values: Vec<_> = row.iter().map(|value| quoted(value.as_deref())).collect();
            format!("({})", values.join(", "))
        };
        let all: Vec<_> = some.iter().map(row).collect();
        db.sql(&format!(
            "INSERT INTO loose SELECT a, b, c, d::numeric, e, f::boolean, g, h, i::jsonb, j FROM (VALUES {}) \
                         v (a, b, c, d, e, f, g, h, i, j)",
            all.join(", ")
        ))
        .await;
    }
}

/// Every fault of a row, by its id; of a row without one, the empty id.
type Faults = BTreeMap<String, Vec<String>>;

fn collect(pairs: impl Iterator<Item = (String, String)>) -> Faults {
    let mut faults = Faults::new();
    pairs.for_each(|(id, text)| faults.entry(id).or_default().push(text));
    faults.values_mut().for_each(|texts| texts.sort());
    faults
}

/// What the program says, and what SQL says.
async fn both(db: &Db) -> (Faults, Faults) {
    let checked = check_with(&db.url, &[("CATALOG_CHECK_LIMIT", "100000")]);
    let rows = checked.bad().into_iter().filter(|finding| finding["subject"] == "row");
    let program = rows.map(|finding| {
        assert!(fix(finding).starts_with("SELECT"));
        (finding["id"].as_str().unwrap_or_default().to_owned(), finding["text"].as_str().unwrap().to_owned())
    });
    let sql = db.client.query("SELECT id, problem, field FROM model_catalog.problems", &[]).await.unwrap();
    let sql = sql.iter().map(|row| {
        let (id, problem, field): (Option<String>, String, String) = (row.get(0), row.get(1), row.get(2));
        assert!(problem.starts_with(&format!("{field} ")) || problem.contains("the same id"), "{field}: {problem}");
        (id.unwrap_or_default(), problem)
    });
    (collect(program), collect(sql))
}

#[tokio::test]
async fn the_rules_in_sql_are_those_of_the_program() {
    let db = Db::new().await;
    db.sql(LOOSE).await;
    let rows = rows();
    fill(&db, &rows).await;
    let (program, sql) = both(&db).await;
    assert!(program.len() > 100 && program.len() < rows.len() - 50, "{} of {}", program.len(), rows.len());
    let differ: Vec<_> = rows
        .iter()
        .filter(|row| {
            let id = row[0].as_deref().unwrap_or_default();
            program.get(id) != sql.get(id)
        })
        .map(|row| {
            (row, program.get(row[0].as_deref().unwrap_or_default()), sql.get(row[0].as_deref().unwrap_or_default()))
        })
        .collect();
    assert!(differ.is_empty(), "{} differ: {differ:#?}", differ.len());
    assert_eq!(program, sql);
    assert_eq!((sql["twice"].len(), sql["mixed"].len()), (2, 1));
}

#[tokio::test]
async fn addresses_are_judged_as_the_parser_does() {
    let db = Db::new().await;
    db.sql(LOOSE).await;
    let urls = random_urls();
    let row = |(number, url): (usize, &String)| {
        let text = |text: &str| Some(text.to_owned());
        let id = format!("{number} {url}");
        [Some(id), text("x"), Some(url.clone()), None, None, text("true"), None, text("x"), None, None]
    };
    fill(&db, &urls.iter().enumerate().map(row).collect::<Vec<_>>()).await;
    let (program, sql) = both(&db).await;
    assert!(program.len() > 1000 && program.len() < 5000, "{}", program.len());
    let all: std::collections::BTreeSet<_> = program.keys().chain(sql.keys()).collect();
    let differ: Vec<_> = all
        .into_iter()
        .filter(|id| {
            // Of a scheme that is not allowed, SQL says just that.
            let scheme = sql.get(*id).is_some_and(|texts| texts[0].contains("has the scheme"));
            program.get(*id) != sql.get(*id) && !(scheme && program.contains_key(*id))
        })
        .map(|id| (id, program.get(id), sql.get(id)))
        .collect();
    assert!(differ.is_empty(), "{} differ: {differ:#?}", differ.len());
}

#[tokio::test]
async fn what_postgres_cannot_judge_passes_there_and_not_here() {
    let db = Db::new().await;
    db.sql(LOOSE).await;
    let urls = ["https://a\u{ad}.x--\u{fffd}/", "https://xn--a\u{fffd}.org", "https://xn--a.org/?q", "https://%ff.org"];
    let bad = urls.iter().map(|url| {
        let text = |text: &str| Some(text.to_owned());
        [text(url), text("x"), text(url), None, None, text("true"), None, text("x"), None, None]
    });
    fill(&db, &bad.collect::<Vec<_>>()).await;
    let (program, sql) = both(&db).await;
    assert_eq!((program.len(), sql.len()), (urls.len(), 0), "{program:#?} {sql:#?}");
}

#[tokio::test]
async fn the_view_can_be_dropped_and_made_anew_under_it() {
    let db = Db::new().await;
    db.sql("DROP VIEW model_catalog.entries").await;
    let error = db.client.batch_execute("SELECT * FROM model_catalog.problems").await.unwrap_err();
    assert!(model_catalog::postgres::error::describe(&error).contains("model_catalog.entries\" does not exist"));
    db.sql(
        "CREATE TABLE loose (id text, name text, download_url text, file_size_gb float8, hash text, auth_required \
            boolean, auth_provider text, save_path text, dependencies json, description text); \
            CREATE VIEW model_catalog.entries AS SELECT * FROM loose; \
            INSERT INTO loose VALUES ('a', 'x', 'https://a', 'Infinity', '', true, '', 'x', '[]', '')",
    )
    .await;
    let problem = "SELECT concat_ws(' | ', id, field, problem) FROM model_catalog.problems";
    let said = "a | file_size_gb | file_size_gb is Infinity: it must be a finite number that is not negative, or NULL";
    assert_eq!(db.sql(problem).await.as_deref(), Some(said));
    db.sql("UPDATE loose SET file_size_gb = 1").await;
    assert_eq!(db.sql(problem).await, None);
    assert_eq!(
        db.sql("SELECT problem FROM model_catalog.problems('{s3}')").await.unwrap(),
        "download_url has the scheme `https`: allowed are s3"
    );
}
