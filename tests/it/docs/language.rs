//! Sources and documents keep to the line width and to standard terms.

use std::path::PathBuf;

use super::root;

/// Private terms of earlier versions, each with the standard term.
const REPLACED_WORDS: [(&str, &str); 15] = [
    ("bell", "notification"),
    ("bells", "notifications"),
    ("doorbell", "notification"),
    ("ring", "notification, to notify"),
    ("rings", "notifications, notifies"),
    ("rung", "notified"),
    ("mend", "fix"),
    ("mended", "fixed"),
    ("guest", "client, connection"),
    ("guests", "clients, connections"),
    ("welcome", "accept"),
    ("in vain", "without success"),
    ("full load", "full read"),
    ("full loads", "full reads"),
    ("the library", "hyper, or the name of the crate"),
];

/// Text in which such a word has its ordinary meaning: ring is also a crate.
const ALLOWED: [&str; 2] = ["crypto::ring", "rustls with ring"];

/// Files whose sentences are read by people.
const CHECKED: [&str; 8] = ["src", "docs", "migrations", "sql", "deploy", "tests", "README.md", "CONTRIBUTING.md"];

/// Files below a path, or the file itself, without this one.
fn files(path: PathBuf) -> Vec<PathBuf> {
    if path.is_dir() {
        let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
        return entries.flat_map(files).collect();
    }
    if path == root().join("tests/it/docs/language.rs") { Vec::new() } else { vec![path] }
}

/// The words of a line in lower case, separated and enclosed by single spaces; identifiers are split at `_`.
fn words(line: &str) -> String {
    let words = line.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.fold(String::from(" "), |all, word| all + &word.to_lowercase() + " ")
}

#[test]
fn private_terms_are_not_used() {
    let mut found = Vec::new();
    let mut lines = 0;
    for file in CHECKED.into_iter().flat_map(|name| files(root().join(name))) {
        let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        for (number, line) in text.lines().enumerate() {
            let words = words(&ALLOWED.iter().fold(line.to_owned(), |line, allowed| line.replace(allowed, "")));
            for (word, standard) in REPLACED_WORDS {
                if words.contains(&format!(" {word} ")) {
                    let place = file.strip_prefix(root()).unwrap().display();
                    found.push(format!("{place}:{}: `{word}` (standard term: {standard})", number + 1));
                }
            }
            lines += 1;
        }
    }
    assert!(lines > 20_000, "the files could not be read: {lines} lines");
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn private_terms_are_found_in_identifiers_and_sentences() {
    assert_eq!(words("// ONLY_THE_BELL, waited in vain."), " only the bell waited in vain ");
    assert!(!words("labelled strings").contains(" bell "));
}

/// rustfmt leaves comments and string literals as wide as they are.
#[test]
fn source_lines_keep_to_the_width_of_rustfmt() {
    let settings = std::fs::read_to_string(root().join("rustfmt.toml")).unwrap();
    let width = settings.lines().find_map(|line| line.strip_prefix("max_width = ")).unwrap().parse().unwrap();
    let sources = files(root().join("src")).into_iter().filter(|file| file.extension().is_some_and(|e| e == "rs"));
    let mut count = 0;
    for file in sources {
        for (number, line) in std::fs::read_to_string(&file).unwrap().lines().enumerate() {
            let length = line.chars().count();
            assert!(length <= width, "{}:{}: {length} characters, maximum {width}", file.display(), number + 1);
        }
        count += 1;
    }
    assert!(count > 50, "the sources could not be read: {count}");
}

/// Where an error is printed, the texts of its sources follow: they would be printed twice.
#[test]
fn errors_do_not_contain_the_text_of_their_source() {
    let mut count = 0;
    for file in files(root().join("src")).into_iter().filter(|file| file.extension().is_some_and(|e| e == "rs")) {
        let text = std::fs::read_to_string(&file).unwrap();
        let prints_chain = text.split("Display for ").any(|item| item.split("\n}").next().unwrap().contains("chain("));
        assert!(!(prints_chain && text.contains("fn source(&self)")), "{}: a source is printed twice", file.display());
        for error in text.split("#[error(").skip(1) {
            let (message, item) = error.split_once(")]").unwrap();
            let fields = item.split_once('(').map_or("", |(_, rest)| rest.split('\n').next().unwrap()).split(", ");
            let sources =
                fields.enumerate().filter(|(_, field)| ["#[source]", "#[from]"].iter().any(|a| field.contains(a)));
            let mut texts = sources
                .map(|(place, _)| format!("{{{place}}}"))
                .chain(["{source}", "describe(", "chain("].map(String::from));
            let found = texts.find(|text| message.contains(text.as_str()));
            assert_eq!(found, None, "{}: {message}", file.display());
            count += 1;
        }
    }
    assert!(count > 100, "the errors could not be read: {count}");
}

/// A database in another encoding refuses statements with a character that the encoding lacks, even in a comment.
#[test]
fn statements_are_ascii() {
    // Its checksum is stored in databases. `migrate` replaces the character.
    let released = |line: &str| line.ends_with("which costs 4 of the 14 \u{b5}s of all rules.");
    let is_sql = |file: &PathBuf| file.extension().is_some_and(|extension| extension == "sql");
    let is_rust = |file: &PathBuf| file.extension().is_some_and(|extension| extension == "rs");
    let mut statements = 0;
    for file in ["migrations", "sql", "src"].into_iter().flat_map(|name| files(root().join(name))) {
        let sends = file.starts_with(root().join("src/postgres"));
        let text = std::fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        for (number, line) in code.lines().enumerate() {
            let is_code = is_rust(&file) && !line.trim_start().starts_with("//");
            let has_sql =
                ["SELECT", "UPDATE", "INSERT", "SET ", "FROM ", "WHERE"].iter().any(|word| line.contains(word));
            if is_sql(&file) || is_code && (sends || has_sql) {
                assert!(line.is_ascii() || released(line), "{}:{}: {line}", file.display(), number + 1);
                statements += 1;
            }
        }
    }
    assert!(statements > 2_000, "the files could not be read: {statements} lines");
}
