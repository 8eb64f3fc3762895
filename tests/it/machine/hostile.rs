//! A hostile catalog can cause writes inside the models folder only.

use std::os::unix::fs::symlink;

use serde_json::json;

use super::files::Way;
use super::{Machine, content};

/// A machine whose catalog responds with this text.
fn machine(name: &str, response: impl Fn(&str) -> String) -> Machine {
    let mut machine = Machine::new(name, "x");
    let url = machine.store.put("/file", Way::File(content(1, 1_000)));
    machine.store.put("/api/models/batch", Way::Post(response(&url)));
    let address = format!("http://{}", machine.store.address);
    machine.set("CATALOG_URL", &address);
    machine
}

/// A response with models: id, URL, folder, name.
fn items(items: &[(&str, &str, &str, &str)]) -> String {
    let item = |(id, url, dir, out): &(&str, &str, &str, &str)| {
        let path = format!("{dir}/{out}");
        json!({"id": id, "download_url": url, "file_size_gb": null, "hash": null, "auth_required": true, "save_path": path})
    };
    let models: Vec<_> = items.iter().map(item).collect();
    json!({"models": models, "not_found": [], "missing_dependencies": []}).to_string()
}

#[test]
fn paths_and_urls_are_validated_again() {
    let machine = machine("paths", |url| {
        let odd = |end: &str| format!("{url}{end}");
        items(&[
            ("up", url, "..", "up"),
            ("deep", url, "a/../../b", "deep"),
            ("root", url, "/tmp", "root"),
            ("name", url, "a", "../../name"),
            ("back", url, "a\\b", "c"),
            ("dot", url, "a", "."),
            ("none", url, "a", ""),
            ("own", url, ".model-catalog", "own"),
            ("own", url, "./.model-catalog/x", "own"),
            ("part", url, ".", ".model-catalog-0123.part"),
            ("tab", &odd("\tx"), "a", "tab"),
            ("quote", &odd("\"x"), "a", "quote"),
            ("space", &odd(" x"), "a", "space"),
            ("local", "file:///etc/passwd", "a", "local"),
            ("option", url, "a\n  save-session=/tmp/x", "option"),
            ("home", url, "${HOME}", "$(touch x)`touch y`;touch z"),
            ("minus", url, "-a", "--out=x -o"),
            ("last", url, ".", "'last one'\u{e4}"),
        ])
    });
    let boot = machine.boot(&[]);
    let expected = ["${HOME}/$(touch x)`touch y`;touch z", "'last one'\u{e4}", "-a/--out=x -o"];
    assert_eq!(machine.files(), expected, "{}", boot.log);
    let outside: Vec<_> = std::fs::read_dir(&machine.folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(outside, ["models"], "{}", boot.log);
    assert!(boot.log.contains("fetched=3 present=0 linked=0 missing=15"), "{}", boot.log);
}

#[test]
fn symlinked_folders_are_followed_only_if_enabled() {
    let mut machine =
        machine("links", |url| items(&[("a", url, "link/sub", "a"), ("b", url, "inner", "b"), ("c", url, ".", "c")]));
    let elsewhere = machine.folder.join("elsewhere");
    std::fs::create_dir_all(machine.models().join("real")).unwrap();
    std::fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, machine.models().join("link")).unwrap();
    symlink("real", machine.models().join("inner")).unwrap();
    // A link in place of the file itself is replaced, not followed.
    std::fs::write(elsewhere.join("c"), "mine").unwrap();
    symlink(elsewhere.join("c"), machine.models().join("c")).unwrap();
    let boot = machine.boot(&[]);
    assert!(
        boot.log.contains("model=\"a\" reason=\"cannot create its folder inside the models folder"),
        "{}",
        boot.log
    );
    assert_eq!((machine.read("real/b"), machine.read("c")), (Some(content(1, 1_000)), Some(content(1, 1_000))));
    assert_eq!(std::fs::read(elsewhere.join("c")).unwrap(), b"mine");
    assert!(!elsewhere.join("sub").exists());

    machine.set("MACHINE_MODELS_LINKS", "1");
    assert_eq!(machine.boot(&[]).status, 0);
    assert_eq!(std::fs::read(elsewhere.join("sub/a")).unwrap(), content(1, 1_000));
}

#[test]
fn response_that_is_not_a_list_is_rejected() {
    for response in ["", "<html>log in</html>", r#"{"models":[],"not_found":[]}"#, "# model-catalog: 0 models\n"] {
        let machine = machine("list", |_| response.to_owned());
        let boot = machine.boot(&["echo", "started"]);
        assert_eq!((boot.status, &*boot.output), (0, "started\n"));
        assert!(boot.log.contains("is not a list of models"), "{response}: {}", boot.log);
    }
}

#[test]
fn server_without_ranges_and_lengths_is_supported() {
    let machine = machine("unsized", |url| items(&[("a", &url.replace("/file", "/unsized"), ".", "a")]));
    machine.store.put("/unsized", Way::Unsized(content(2, 300_000)));
    let boot = machine.boot(&[]);
    assert_eq!(boot.status, 0, "{}", boot.log);
    assert!(machine.read("a") == Some(content(2, 300_000)), "{}", boot.log);
}
