//! `model_catalog.problems` agrees with the program, row by row: same verdict, same message. The one exception is what
//! only a URL parser can decide, where SQL may accept what the program rejects, and never the reverse.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::{check_with, fix, rules};
use crate::support::{Db, migrated};
use crate::sync::encodings::ENCODINGS;

/// A table without constraints, read by the view.
const LOOSE: &str = "
    CREATE TABLE loose (id text, name text, download_url text, file_size_gb numeric, hash text, auth_required boolean,
                        auth_provider text, save_path text, dependencies jsonb, description text, mirrors jsonb);
    CREATE INDEX ON loose (id);
    DROP VIEW model_catalog.entries; CREATE VIEW model_catalog.entries AS SELECT * FROM loose;
    SELECT model_catalog.watch('loose', 'id')";

/// Those of `loose`.
const COLUMNS: usize = 11;

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
const PATHS: [&str; 33] = [
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
    "a/.",
    "/.",
    "a/./b",
    ".model-catalog",
    ".model-catalog/x",
    "a/.MODEL-catalog.part",
    "a/.model",
    "a/x.model-catalog",
    ".model-catalo\u{0433}",
];
const SIZES: [&str; 15] = [
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
    // Halfway between the greatest double and infinity: below it a number is rounded down, from it on up.
    "1.7976931348623158e308",
    "179769313486231580793728971405303415079934132710037826936173778980444968292764750946649017977587207096330286416692887910946555547851940402630657488671505820681908902000708383676273854845817711531764475730270069855571366959622842914819860834936475292719074168444365510704342711559699508093042879",
    "179769313486231580793728971405303415079934132710037826936173778980444968292764750946649017977587207096330286416692887910946555547851940402630657488671505820681908902000708383676273854845817711531764475730270069855571366959622842914819860834936475292719074168444365510704342711559699508093042880",
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
const URLS: [&str; 86] = [
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
    "https://u%40v@a",
    "https://:@a",
    "https://:p@a",
    "https://u@v@a",
    "https:u@a",
    "https:\\\\u@a",
    "https://a/u@b",
    "https://a\\u@b",
    "https://a?u@b",
    "https://a#u@b",
    "https:///u@a",
    "  HTTPS://u@a",
    "https://a\u{ad}.x--\u{fffd}/",
    "https://xn--a.org/?q",
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
    "http://A\\@B/x",
    "https://a/\\b",
    "https://a?\\",
    "https://u@a\\b",
    "ftp://a\\b",
    "https:\\",
];

fn quoted(value: Option<&str>) -> String {
    value.map_or("NULL".into(), |value| postgres_protocol::escape::escape_literal(value).trim_start().into())
}

/// Rows that are valid except for one column; then rows that break two rules, and rows with the same id.
pub fn rows() -> Vec<[Option<String>; COLUMNS]> {
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
            None,
        ]
    };
    let mut rows: Vec<[Option<String>; COLUMNS]> = Vec::new();
    let mut add = |changes: &[(usize, Option<&str>)]| {
        let mut row = good(rows.len());
        changes.iter().for_each(|(column, value)| row[*column] = value.map(str::to_owned));
        rows.push(row);
    };
    for column in 0..COLUMNS {
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
        (10, &DEPENDENCIES),
        (2, &URLS),
    ] {
        values.iter().for_each(|value| add(&[(column, Some(value))]));
    }
    // Lengths are those of the UTF-8.
    for (text, bytes) in [("a", 1), ("\u{e4}", 2), ("\u{65e5}", 3)] {
        for limit in [255, 256] {
            add(&[(7, Some(&format!("a/{}/b", text.repeat(limit / bytes))))]);
            add(&[(7, Some(&format!("{}{}", text.repeat(limit / bytes), "b".repeat(limit % bytes + 1))))]);
        }
    }
    for path in ["a/".repeat(2047) + "bc", "a/".repeat(2048) + "b", "a".repeat(5000), "\u{e4}/".repeat(1365) + "b"] {
        add(&[(7, Some(&path))]);
    }
    for url in URLS.iter().chain(&TEXTS) {
        for mirrors in [json!([url]), json!(["https://example.org/1", url, "https://example.org/2"])] {
            add(&[(10, Some(&mirrors.to_string()))]);
        }
    }
    // The first rule broken, in the order of the columns, is reported.
    let bad =
        [(1, "\u{1}"), (2, "none"), (3, "-1"), (4, "\u{2}"), (7, "../x"), (8, "{}"), (9, "\u{3}"), (10, "[\"x\"]")];
    for one in bad {
        for other in bad {
            add(&[(one.0, Some(one.1)), (other.0, Some(other.1))]);
        }
    }
    // Several rows with one id: all of them valid, or one of them not.
    for (id, path) in [("twice", "a"), ("twice", "b"), ("twice", "c"), ("mixed", "a"), ("mixed", "../a"), ("once", "a")]
    {
        add(&[(0, Some(id)), (7, Some(path))]);
    }
    rows
}

/// URLs made at random from parts that matter to a parser.
fn random_urls() -> Vec<String> {
    let pieces = [
        "http", "https", "ftp", "s3", "file", ":", "/", "//", "://", "\\", "a", "B.c", "a..b", "-", "_", ".", "1",
        "0x1", "255", "256", "09", "[", "]", "::", "[::1]", "[1:2::3]", "@", "u:p@", "?", "#", ":80", ":99999", " ",
        "%41", "%2F", "%", "<", "\"", "{", "~",
    ];
    let mut random = fastrand::Rng::with_seed(20);
    let url = |_| {
        let start = ["", "https://", "http://", "https://", "https:", "s3://", "file:///"][random.usize(0..7)];
        let rest = (0..random.usize(1..6)).map(|_| pieces[random.usize(0..pieces.len())]);
        start.to_owned() + &rest.collect::<String>()
    };
    (0..6_000).map(url).collect()
}

/// The statement that inserts rows.
fn insert(rows: &[[Option<String>; COLUMNS]]) -> String {
    let row = |row: &[Option<String>; COLUMNS]| {
        let values: Vec<_> = row.iter().map(|value| quoted(value.as_deref())).collect();
        format!("({})", values.join(", "))
    };
    let all: Vec<_> = rows.iter().map(row).collect();
    format!(
        "INSERT INTO loose SELECT a, b, c, d::numeric, e, f::boolean, g, h, i::jsonb, j, k::jsonb FROM (VALUES {}) \
                         v (a, b, c, d, e, f, g, h, i, j, k)",
        all.join(", ")
    )
}

async fn fill(db: &Db, rows: &[[Option<String>; COLUMNS]]) {
    for some in rows.chunks(500) {
        db.sql(&insert(some)).await;
    }
}

/// The problems of the rows with each id; a row without an id counts as the empty one.
type Problems = BTreeMap<String, Vec<String>>;

fn collect(pairs: impl Iterator<Item = (String, String)>) -> Problems {
    let mut problems = Problems::new();
    pairs.for_each(|(id, text)| problems.entry(id).or_default().push(text));
    problems.values_mut().for_each(|texts| texts.sort());
    problems
}

/// What the program reports, and what SQL reports with these schemes.
async fn both_with(db: &Db, schemes: &str) -> (Problems, Problems) {
    let checked = check_with(&db.url, &[("CATALOG_CHECK_LIMIT", "100000"), ("CATALOG_URL_SCHEMES", schemes)]);
    let rows = checked.bad().into_iter().filter(|finding| finding["subject"] == "row");
    let program = rows.map(|finding| {
        assert!(fix(finding).starts_with("SELECT"));
        (finding["id"].as_str().unwrap_or_default().to_owned(), finding["text"].as_str().unwrap().to_owned())
    });
    let query = "SELECT id, problem, field FROM model_catalog.problems(string_to_array($1, ','))";
    let sql = db.client.query(query, &[&schemes]).await.unwrap();
    let sql = sql.iter().map(|row| {
        let (id, problem, field): (Option<String>, String, String) = (row.get(0), row.get(1), row.get(2));
        assert!(problem.starts_with(&field) || problem.contains("the same id"), "{field}: {problem}");
        (id.unwrap_or_default(), problem)
    });
    (collect(program), collect(sql))
}

async fn both(db: &Db) -> (Problems, Problems) {
    let schemes = "http,https";
    let (program, sql) = both_with(db, schemes).await;
    let view = db.client.query("SELECT id, problem FROM model_catalog.problems", &[]).await.unwrap();
    let view = view.iter().map(|row| (row.get::<_, Option<String>>(0).unwrap_or_default(), row.get(1)));
    assert_eq!(collect(view), sql, "the view has the default schemes");
    (program, sql)
}

fn is_of_a_url(problem: &str) -> bool {
    problem.starts_with("download_url ") || problem.starts_with("mirrors[")
}

/// Whether only a parser can find this: the URL has a scheme, and the rest of it can't be parsed.
fn is_for_the_parser(problem: &str) -> bool {
    problem.contains(" is not an absolute URL: ") && !problem.ends_with(": relative URL without a base")
}

/// Fails on every id for which the two disagree. A URL that can't be parsed may have passed in SQL, or may be reported
/// there for its scheme or its credentials.
fn assert_agreement(program: &Problems, sql: &Problems) {
    let ids: BTreeSet<_> = program.keys().chain(sql.keys()).collect();
    let none = Vec::new();
    let differ = ids.into_iter().map(|id| (id, program.get(id).unwrap_or(&none), sql.get(id).unwrap_or(&none)));
    let differ: Vec<_> = differ
        .filter(|(_, program, sql)| {
            let parser = matches!(&program[..], [problem] if is_for_the_parser(problem));
            program != sql && !(parser && sql.len() < 2 && sql.iter().all(|text| is_of_a_url(text)))
        })
        .collect();
    assert!(differ.is_empty(), "{} differ: {differ:#?}", differ.len());
}

/// The number of problems that contain this text.
fn count(problems: &Problems, part: &str) -> usize {
    problems.values().flatten().filter(|text| text.contains(part)).count()
}

#[tokio::test]
async fn sql_and_the_program_report_the_same_problems() {
    let db = Db::lenient().await;
    db.sql(LOOSE).await;
    let rows = rows();
    fill(&db, &rows).await;
    let (program, sql) = both(&db).await;
    assert!(program.len() > 100 && program.len() < rows.len() - 50, "{} of {}", program.len(), rows.len());
    assert_agreement(&program, &sql);
    assert_eq!((sql["twice"].len(), sql["mixed"].len()), (2, 1));
    // Every rule is broken by some row, in every column that it applies to.
    for column in ["id", "name", "download_url", "auth_required", "save_path"] {
        assert!(count(&sql, &format!("{column} is missing: ")) > 0, "{column}");
    }
    for column in
        ["id", "name", "download_url", "hash", "auth_provider", "save_path", "dependencies", "description", "mirrors"]
    {
        assert!(count(&sql, &format!("{column} contains the control character ")) > 0, "{column}");
    }
    for problem in rules::TEXTS {
        assert!(count(&sql, problem) > 0, "{problem}");
    }
}

#[tokio::test]
async fn sql_and_the_program_agree_in_every_encoding() {
    // Postgres stores U+0080 to U+009F in EUC_JIS_2004 as bytes that it refuses to read.
    let others = |(encoding, _): &(&str, &str)| !["UTF8", "EUC_JIS_2004"].contains(encoding);
    for (encoding, _) in ENCODINGS.into_iter().filter(others) {
        let db = Db::in_encoding(encoding).await;
        drop(migrated(&db.url).await);
        db.sql("SELECT model_catalog.strict(false)").await;
        db.sql(LOOSE).await;
        let plain = |text: &String| text.is_ascii() && !text.contains("\\u");
        let (ascii, others): (Vec<_>, Vec<_>) = rows().into_iter().partition(|row| row.iter().flatten().all(plain));
        fill(&db, &ascii).await;
        let mut accepted = 0;
        for row in &others {
            // The encoding may lack a character.
            accepted += usize::from(db.client.batch_execute(&insert(std::slice::from_ref(row))).await.is_ok());
        }
        let (program, sql) = both(&db).await;
        assert!(accepted > 0 && program.len() > 100, "{encoding}: {accepted} {}", program.len());
        assert_agreement(&program, &sql);
    }
}

#[tokio::test]
async fn sql_rejects_no_url_that_the_program_serves() {
    let db = Db::lenient().await;
    db.sql(LOOSE).await;
    let urls = random_urls();
    let row = |(number, url): (usize, &String)| {
        let text = |text: &str| Some(text.to_owned());
        let id = format!("{number} {url}");
        [Some(id), text("x"), Some(url.clone()), None, None, text("true"), None, text("x"), None, None, None]
    };
    fill(&db, &urls.iter().enumerate().map(row).collect::<Vec<_>>()).await;
    for schemes in ["http,https", "http,https,ftp,file,s3"] {
        let (program, sql) = both_with(&db, schemes).await;
        assert!(program.len() > 1000 && program.len() < 5000, "{}", program.len());
        assert!(count(&sql, "a user name or a password") > 300, "{}", count(&sql, "a user name or a password"));
        assert_agreement(&program, &sql);
    }
}

#[tokio::test]
async fn hosts_are_checked_by_the_program_only() {
    let db = Db::lenient().await;
    db.sql(LOOSE).await;
    let urls = ["https://xn--a\u{fffd}.org", "https://%ff.org", "https://256.1.1.1", "https://[::1", "https://a:99999"];
    let bad = urls.iter().map(|url| {
        let text = |text: &str| Some(text.to_owned());
        [text(url), text("x"), text(url), None, None, text("true"), None, text("x"), None, None, None]
    });
    fill(&db, &bad.collect::<Vec<_>>()).await;
    let (program, sql) = both(&db).await;
    assert_eq!((program.len(), sql.len()), (urls.len(), 0), "{program:#?} {sql:#?}");
}

#[tokio::test]
async fn problems_view_survives_recreating_entries() {
    let db = Db::lenient().await;
    db.sql("DROP VIEW model_catalog.entries").await;
    let error = db.client.batch_execute("SELECT * FROM model_catalog.problems").await.unwrap_err();
    assert!(model_catalog::base::error_chain::chain(&error).contains("model_catalog.entries\" does not exist"));
    db.sql(
        "CREATE TABLE loose (id text, name text, download_url text, file_size_gb float8, hash text, auth_required \
            boolean, auth_provider text, save_path text, dependencies json, description text); \
            CREATE VIEW model_catalog.entries AS SELECT * FROM loose; \
            INSERT INTO loose VALUES ('a', 'x', 'https://a', 'Infinity', '', true, '', 'x', '[]', '')",
    )
    .await;
    let problem = "SELECT concat_ws(' | ', id, field, problem) FROM model_catalog.problems";
    let expected =
        "a | file_size_gb | file_size_gb is Infinity: it must be a finite number that is not negative, or NULL";
    assert_eq!(db.sql(problem).await.as_deref(), Some(expected));
    db.sql("UPDATE loose SET file_size_gb = 1").await;
    assert_eq!(db.sql(problem).await, None);
    assert_eq!(
        db.sql("SELECT problem FROM model_catalog.problems('{s3}')").await.unwrap(),
        "download_url has the scheme `https`: allowed are s3"
    );
}
