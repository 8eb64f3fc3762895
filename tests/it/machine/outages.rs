//! Hosts that are down, silent or ask to wait, and responses that are not the file.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use super::files::Way;
use super::hubs::response;
use super::{Machine, add, content, sum};
use crate::support::system_faults::SystemFaults;
use crate::support::{Db, Server};

const SIZE: usize = 300_000;

#[test]
fn silent_host_delays_only_its_own_file_and_is_given_up() {
    let mut machine = Machine::new("silent", "all");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("http://{}/x", listener.local_addr().unwrap());
    let hash = |seed| Some(sum("sha256sum", &content(seed, SIZE)));
    let urls: Vec<_> =
        (0..4).map(|seed| machine.store.put(&format!("/{seed}"), Way::File(content(seed, SIZE)))).collect();
    let mut models: Vec<_> = (0..4).map(|_| ("silent", &*silent, "s", hash(9), None)).take(1).collect();
    let ids = ["a", "b", "c", "d"];
    models.extend(urls.iter().enumerate().map(|(seed, url)| (ids[seed], &**url, ids[seed], hash(seed as u64), None)));
    machine.models_are(&models);
    machine.set("MACHINE_MODELS_PARALLEL", "1");
    // Half of it is for the plan and one attempt.
    machine.set("MACHINE_MODELS_WAIT", "30");
    let started = Instant::now();
    let boot = machine.boot(&[]);
    assert!(boot.log.contains("fetched=4 present=0 linked=0 missing=1"), "{}", boot.log);
    assert!(boot.log.contains(r#"missing model="silent" reason="127.0.0.1 did not respond in time""#), "{}", boot.log);
    assert!(!boot.log.contains("retrying"), "{}", boot.log);
    let order: Vec<_> = ["a", "silent"].map(|id| boot.log.find(&format!("model=\"{id}\"")).unwrap()).into();
    assert!(order[0] < order[1] && started.elapsed() < Duration::from_secs(60), "{:?} {}", started.elapsed(), boot.log);
}

#[test]
fn small_file_costs_one_request() {
    let mut machine = Machine::new("small", "a");
    let file = content(1, SIZE);
    let url = machine.store.put("/a", Way::File(file.clone()));
    machine.models_are(&[("a", &url, "a", Some(sum("sha256sum", &file)), Some(0.01))]);
    let boot = machine.boot(&[]);
    assert!(boot.status == 0 && machine.read("a") == Some(file), "{}", boot.log);
    let requests = machine.store.take_requests();
    assert_eq!(requests.iter().filter(|request| request.path == "/a").count(), 1, "{requests:?}");
}

#[test]
fn short_outage_at_the_start_is_survived() {
    let mut machine = Machine::new("outage", "a");
    let file = content(1, SIZE);
    let unavailable = response(503, &[], "");
    let later = (0..5).fold(Way::File(file.clone()), |next, _| Way::Once(unavailable.clone(), Box::new(next)));
    let url = machine.store.put("/a", later);
    machine.models_are(&[("a", &url, "a", Some(sum("sha256sum", &file)), None)]);
    machine.set("MACHINE_MODELS_TRIES", "1");
    machine.set("MACHINE_MODELS_WAIT", "60");
    let boot = machine.boot(&[]);
    assert!(boot.status == 0 && machine.read("a") == Some(file), "{}", boot.log);
}

#[test]
fn first_request_to_wait_is_respected() {
    for (header, seconds) in [
        ("retry-after: 3", 3),
        ("ratelimit: \"resolvers\";r=0;t=3", 3),
        ("RateLimit: \"pages\";r=9;t=1, \"api\";r=0;t=3", 3),
    ] {
        let mut machine = Machine::new("asked", "a");
        let file = content(1, SIZE);
        let limited = response(429, &[header], "");
        let url = machine.store.put("/a", Way::Once(limited, Box::new(Way::File(file.clone()))));
        machine.models_are(&[("a", &url, "a", Some(sum("sha256sum", &file)), None)]);
        let started = Instant::now();
        let boot = machine.boot(&[]);
        assert!(boot.status == 0 && machine.read("a").as_ref() == Some(&file), "{header}: {}", boot.log);
        assert!(started.elapsed() >= Duration::from_secs(seconds), "{header}: {:?} {}", started.elapsed(), boot.log);
        let requests = machine.store.take_requests();
        assert_eq!(requests.iter().filter(|request| request.path == "/a").count(), 2, "{requests:?}");
    }
}

#[test]
fn what_is_not_the_file_is_not_kept() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 9\n";
    let page = "<!-- generated -->\n<html><body>log in</body></html>";
    for (body, size, reason) in [
        (pointer, None, "127.0.0.1 sent a git-lfs pointer instead of a file"),
        (r#"{"message": "no such file"}"#, None, "127.0.0.1 sent a JSON document instead of a file"),
        (
            "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>",
            None,
            "127.0.0.1 sent an XML document instead",
        ),
        (page, None, "127.0.0.1 sent a web page (HTML) instead of a file"),
        ("", Some(0.003), "the file has 0 bytes on the server, but 3000000 in the catalog"),
    ] {
        let mut machine = Machine::new("notthefile", "a");
        let url = machine.store.put("/a", Way::File(body.as_bytes().to_vec()));
        machine.models_are(&[("a", &url, "a.safetensors", None, size)]);
        let boot = machine.boot(&[]);
        assert!(boot.status == 1 && boot.log.contains(reason), "{reason}: {}", boot.log);
        assert_eq!(machine.files(), [""; 0], "{}", boot.log);
    }
}

#[test]
fn unfinished_file_of_aria2_is_not_present() {
    let mut machine = Machine::new("unfinished", "a");
    let file = content(1, SIZE);
    let url = machine.store.put("/a", Way::File(file.clone()));
    machine.models_are(&[("a", &url, "a.bin", None, None)]);
    machine.put("a.bin", &vec![0; SIZE]);
    machine.put("a.bin.aria2", b"state");
    let boot = machine.boot(&[]);
    assert!(boot.log.contains("fetched=1") && machine.read("a.bin") == Some(file), "{}", boot.log);
    let boot = machine.boot(&[]);
    assert!(boot.log.contains("fetched=0 present=1"), "{}", boot.log);
}

#[test]
fn endpoint_replaces_the_hub() {
    let mut machine = Machine::new("replaced", "a");
    let file = content(1, SIZE);
    machine.hub.put_for_token("/o/m/resolve/main/x", Way::File(file.clone()));
    let url = "https://huggingface.co/o/m/resolve/main/x";
    machine.models_are(&[("a", url, "a", Some(sum("sha256sum", &file)), None)]);
    let boot = machine.boot(&[]);
    assert!(boot.status == 0 && machine.read("a") == Some(file), "{}", boot.log);
}

#[tokio::test]
async fn more_ids_than_one_batch_are_requested_in_several() {
    let ids: Vec<_> = (0..1_500).map(|number| format!("absent{number}")).collect();
    let mut machine = Machine::new("batches", &ids.join(","));
    let db = Db::new().await;
    let server = Server::start(&db).await;
    machine.catalog(&server);
    let boot = machine.boot(&[]);
    assert!(boot.status == 1 && boot.log.contains("missing=1500"), "{}", boot.log);
}

#[test]
fn too_many_files_at_a_time_are_a_warning() {
    let mut machine = Machine::new("capped", "a");
    let file = content(1, SIZE);
    let url = machine.store.put("/a", Way::File(file.clone()));
    machine.models_are(&[("a", &url, "a", Some(sum("sha256sum", &file)), None)]);
    machine.set("MACHINE_MODELS_PARALLEL", "100000");
    machine.set("MACHINE_MODELS_CONNECTIONS", "100000");
    machine.set("MACHINE_MODELS_STALL", "500000000000 years");
    machine.set("MACHINE_MODELS_WAIT", "4294967295");
    let boot = machine.boot(&[]);
    assert!(boot.status == 0 && boot.log.contains("MACHINE_MODELS_PARALLEL is 100000: using 64"), "{}", boot.log);
}

#[tokio::test]
async fn model_with_more_dependencies_than_a_batch_is_pulled_with_all_of_them() {
    let mut machine = Machine::new("dependencies", "big,other");
    let db = Db::new().await;
    for (number, (id, needs)) in
        [("other", &["deep"][..]), ("dep7", &["deep", "big"]), ("deep", &["gone"])].iter().enumerate()
    {
        let file = content(number as u64, SIZE);
        let url = machine.store.put(&format!("/{id}"), Way::File(file.clone()));
        add(&db, id, &url, id, &sum("sha256sum", &file), false, needs).await;
    }
    let url = machine.store.put("/big", Way::File(content(9, SIZE)));
    let needs: Vec<_> = (0..2_500).map(|number| format!("dep{number}")).collect();
    let needs: Vec<_> = needs.iter().map(String::as_str).collect();
    add(&db, "big", &url, "big", &sum("sha256sum", &content(9, SIZE)), false, &needs).await;
    let server = Server::start(&db).await;
    machine.catalog(&server);
    let boot = machine.boot(&[]);
    assert!(boot.log.contains("fetched=4 present=0 linked=0 missing=2500"), "{}", boot.log.lines().last().unwrap());
    assert_eq!(machine.files(), ["big", "deep", "dep7", "other"]);
    for reason in [r#"model="dep8" reason="\"big\" depends on it"#, r#"model="gone" reason="\"deep\" depends on it"#] {
        assert!(boot.log.contains(reason), "{reason} {}", boot.log);
    }
}

#[test]
fn name_server_that_does_not_answer_does_not_delay_the_command() {
    let faults = SystemFaults::new();
    faults.begin("silent-resolver");
    let mut machine = Machine::new("resolver", "a");
    for (name, value) in faults.settings() {
        machine.set(name, value);
    }
    machine.models_are(&[("a", "http://files.invalid/a", "a", None, None)]);
    let boot = machine.boot_in_time(&["echo", "started"]);
    assert_eq!((boot.status, &*boot.output), (0, "started\n"), "{}", boot.log);
    assert!(boot.log.contains(r#"model="a" reason="files.invalid did not respond in time""#), "{}", boot.log);
    machine.set("CATALOG_URL", "http://catalog.invalid");
    let boot = machine.boot_in_time(&["echo", "started"]);
    assert_eq!((boot.status, &*boot.output), (0, "started\n"), "{}", boot.log);
    assert!(boot.log.contains("cannot get the models from the catalog"), "{}", boot.log);
}

#[test]
fn dead_host_with_many_files_delays_a_boot_little() {
    let mut machine = Machine::new("dead", "all");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let file = content(1, SIZE);
    let good = machine.store.put("/good", Way::File(file.clone()));
    let rows: Vec<_> = (0..24)
        .map(|number| (number.to_string(), format!("http://{}/{number}", listener.local_addr().unwrap())))
        .collect();
    let mut models: Vec<_> =
        rows.iter().map(|(id, url)| (&**id, &**url, &**id, Some(sum("sha256sum", id.as_bytes())), None)).collect();
    models.push(("good", &good, "good", Some(sum("sha256sum", &file)), None));
    machine.models_are(&models);
    machine.set("MACHINE_MODELS_TRIES", "3");
    let started = Instant::now();
    let boot = machine.boot(&[]);
    assert!(boot.log.contains("fetched=1 present=0 linked=0 missing=24"), "{}", boot.log);
    // Five seconds for the plan, and three for each of 24 files, four at a time. Without a memory of the host: 65.
    assert!(started.elapsed() < Duration::from_secs(45), "{:?}: {}", started.elapsed(), boot.log);
}

#[test]
fn urls_that_differ_by_a_download_parameter_are_one_file() {
    let mut machine = Machine::new("parameter", "a,b");
    let url = machine.store.put("/a", Way::File(content(1, SIZE)));
    machine.models_are(&[("a", &url, "f", None, None), ("b", &format!("{url}?download=true"), "f", None, None)]);
    let boot = machine.boot(&[]);
    assert!(boot.status == 0 && boot.log.contains("fetched=1 present=0 linked=0 missing=0"), "{}", boot.log);
    machine.models_are(&[("a", &url, "f", None, None), ("b", &format!("{url}?download=1"), "f", None, None)]);
    let boot = machine.boot(&[]);
    assert!(boot.status == 1 && boot.log.contains("another model has the save path f"), "{}", boot.log);
}

#[test]
fn catalog_that_redirects_is_named_at_once() {
    let mut machine = Machine::new("redirects", "a");
    let url = machine.store.put("/api/models/batch", Way::Redirect(308, "https://catalog.example/x?secret".into()));
    machine.set("CATALOG_URL", &url.replace("/api/models/batch", ""));
    machine.set("MACHINE_MODELS_WAIT", "600");
    let boot = machine.boot_in_time(&[]);
    let reason =
        "127.0.0.1 returned status 308: it redirects to https://catalog.example, which CATALOG_URL should name";
    assert!(boot.status == 1 && boot.log.contains(reason), "{}", boot.log);
}

#[test]
fn path_that_is_the_folder_of_another_file_is_named_before_the_download() {
    let mut machine = Machine::new("prefix", "a,b");
    let (a, b) = (content(1, SIZE), content(2, SIZE));
    let urls = [("/a", &a), ("/b", &b)].map(|(path, file)| machine.store.put(path, Way::File(file.clone())));
    machine.models_are(&[("a", &urls[0], "p", None, None), ("b", &urls[1], "p/q", None, None)]);
    let boot = machine.boot(&[]);
    let reason = r#"missing model="a" reason="its save path p is the folder of another model""#;
    assert!(boot.status == 1 && boot.log.contains(reason), "{}", boot.log);
    assert_eq!(machine.files(), ["p/q"], "{}", boot.log);
    assert!(machine.store.take_requests().iter().all(|request| request.path != "/a"), "{}", boot.log);
}
