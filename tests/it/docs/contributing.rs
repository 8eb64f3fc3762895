//! CONTRIBUTING.md: its map of the source and its list of dependencies are complete and correct. So are the functions that
//! docs/design.md names.

use std::collections::BTreeMap;
use std::path::Path;

use super::{CONTRIBUTING, DESIGN, root};

const MANIFEST: &str = include_str!("../../../Cargo.toml");

/// The text under a heading.
fn section(document: &'static str, heading: &str) -> &'static str {
    let (_, section) = document.split_once(&format!("\n## {heading}\n")).unwrap();
    section.split("\n## ").next().unwrap()
}

/// Rows of the table under a heading, without the header.
fn rows(heading: &str) -> Vec<&'static str> {
    section(CONTRIBUTING, heading).lines().filter(|line| line.starts_with("| ")).skip(1).collect()
}

/// Texts between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Whether a Rust source defines a function or type.
fn defines(source: &str, name: &str) -> bool {
    let words: Vec<_> = source.split(|c: char| !(c.is_alphanumeric() || c == '_')).collect();
    words.windows(2).any(|pair| ["fn", "struct", "enum"].contains(&pair[0]) && pair[1] == name)
}

/// Checks the names that follow the path of a Rust file, and returns how many there are.
fn check_names(text: &str) -> usize {
    let (mut names, mut source) = (0, None);
    for name in quoted(text) {
        if name.ends_with('/') {
            source = None;
        } else if name.contains('/') && !name.starts_with('/') {
            let file = std::fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
            source = Some(file).filter(|_| name.ends_with(".rs"));
        } else if let Some(source) = source.as_ref().filter(|_| name.chars().all(|c| c.is_alphanumeric() || c == '_'))
            && !name.chars().all(|c| c.is_ascii_uppercase() || c == '_')
        {
            assert!(defines(source, name), "{name} is not defined where this text says: {text}");
            names += 1;
        }
    }
    names
}

#[test]
fn places_define_the_names_that_follow_them() {
    let names: usize = rows("Where to find things").iter().map(|row| check_names(row)).sum();
    assert!(names > 8, "the table could not be read: {names}");
}

/// The table names functions with parentheses, as in `reload()`, and views without.
#[test]
fn current_definitions_of_sql_objects_are_listed() {
    let names = std::fs::read_dir(root().join("migrations")).unwrap();
    let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_by_key(|name| name[1..].split("__").next().unwrap().parse::<u32>().unwrap());
    let mut defined = BTreeMap::new();
    for migration in names.iter().map(|name| format!("migrations/{name}")) {
        for line in std::fs::read_to_string(root().join(&migration)).unwrap().lines() {
            let Some(object) = line.strip_prefix("CREATE ") else { continue };
            let object = object.trim_start_matches("OR REPLACE ");
            let name = |kind| object.strip_prefix(kind).map(|rest: &str| rest.split(['(', ' ']).next().unwrap());
            let (function, view) = (name("FUNCTION model_catalog."), name("VIEW model_catalog."));
            if let Some(object) = function.map(|name| format!("{name}()")).or(view.map(str::to_owned)) {
                defined.insert(object, migration.clone());
            }
        }
    }
    let mut listed = BTreeMap::new();
    for row in rows("Where to find things").iter().filter(|row| row.starts_with("| `migrations/")) {
        let mut names = quoted(row).map(str::to_owned);
        let migration = names.next().unwrap();
        listed.extend(names.map(|object| (object, migration.clone())));
    }
    assert!(defined.len() > 20, "the migrations could not be read: {defined:?}");
    assert_eq!(listed, defined);
}

#[test]
fn recipes_name_files_and_items_that_exist() {
    let names: usize = section(CONTRIBUTING, "Recipes").split("\n\n").map(check_names).sum();
    assert!(names > 5, "the recipes could not be read: {names}");
}

#[test]
fn functions_on_the_way_of_a_request_and_of_a_change_exist() {
    for life in ["The life of a request", "The life of a change"] {
        let names = check_names(section(DESIGN, life));
        assert!(names > 12, "{life} could not be read: {names}");
    }
}

#[test]
fn source_map_lists_every_module() {
    let rows = rows("Source map");
    let folders: Vec<_> = rows.iter().filter_map(|row| quoted(row).next()).collect();
    assert!(folders.len() > 10, "the table could not be read: {folders:?}");
    for row in rows.iter().filter(|row| row.starts_with("| `src/")) {
        let folder = quoted(row).next().unwrap();
        for file in std::fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path()) {
            let name = file.file_stem().unwrap().to_str().unwrap();
            let is_module = file.is_dir() || file.extension().is_some_and(|extension| extension == "rs");
            let is_listed = quoted(row).any(|word| word.trim_end_matches('/') == name)
                || folders.contains(&&*format!("{folder}{name}/"));
            assert!(!is_module || name == "mod" || is_listed, "the row of {folder} lacks {name}");
        }
        for name in quoted(row).skip(1).map(|name| name.trim_end_matches('/')) {
            let path = root().join(folder).join(name);
            assert!(path.is_dir() || path.with_extension("rs").exists(), "{folder}{name} does not exist");
        }
    }
}

/// The Rust sources of a module of `src`, without their unit tests.
fn code(path: &Path) -> String {
    if path.is_dir() {
        return std::fs::read_dir(path).unwrap().map(|entry| code(&entry.unwrap().path())).collect();
    }
    let text = if path.extension().is_some_and(|e| e == "rs") {
        std::fs::read_to_string(path).unwrap()
    } else {
        String::new()
    };
    text.split("#[cfg(test)]").next().unwrap().to_owned()
}

#[test]
fn modules_import_only_modules_below_them() {
    let list =
        section(CONTRIBUTING, "Source map").split_once("which a test checks:").unwrap().1.split_once('.').unwrap().0;
    let order: Vec<_> = quoted(list).collect();
    assert!(order.len() > 10, "the list could not be read: {order:?}");
    for path in std::fs::read_dir(root().join("src")).unwrap().map(|entry| entry.unwrap().path()) {
        let module = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if ["lib", "main"].contains(&&*module) {
            continue;
        }
        let place = |name: &str| {
            order.iter().position(|listed| *listed == name).unwrap_or_else(|| panic!("no {name} in the list"))
        };
        for imported in code(&path).split("crate::").skip(1) {
            let imported: String = imported.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let below = imported == module || place(&imported) > place(&module);
            assert!(below, "{module} imports {imported}, which is not below it in CONTRIBUTING.md");
        }
    }
}

#[test]
fn every_dependency_has_a_reason() {
    let listed: Vec<_> =
        rows("Dependencies").iter().flat_map(|row| row[2..].split(" | ").next().unwrap().split(", ")).collect();
    let mut inside = false;
    for line in MANIFEST.lines() {
        if line.starts_with('[') {
            inside = line.ends_with("dependencies]");
        } else if let Some((name, _)) = line.split_once(" = ").filter(|_| inside) {
            assert!(listed.contains(&name), "CONTRIBUTING.md gives no reason for {name}");
        }
    }
    for name in listed {
        assert!(MANIFEST.contains(&format!("\n{name} = ")), "CONTRIBUTING.md lists {name}, which is not a dependency");
    }
}

#[test]
fn dependency_count_is_correct() {
    let table = MANIFEST.split_once("[dependencies]\n").unwrap().1.split("\n\n").next().unwrap();
    let text = format!("{} direct dependencies", table.lines().count());
    assert!(CONTRIBUTING.contains(&text), "CONTRIBUTING.md does not say {text}");
}
