//! From ids to files on disk: downloads, existing files, missing models and their reports.

use std::net::TcpListener;
use std::process::Command;

use model_catalog::postgres::ephemeral::free_port;

use super::files::Way;
use super::{Machine, add, content, sum};
use crate::docs::block;
use crate::support::{Db, Server, until};

/// Larger than one read of a client, so that a transfer can be interrupted in the middle.
const LARGE: usize = 3_000_000;

/// flux depends on vae and clip, vae on a model that does not exist; each of the others fails in a different way.
async fn catalog(machine: &mut Machine) -> (Db, Server) {
    let db = Db::new().await;
    let (hub, store) = (&machine.hub, &machine.store);
    let flux = content(1, LARGE);
    let signed = store.put("/flux", Way::Expires(flux.clone()));
    let url = hub.put_for_token("/flux", Way::Redirect(302, format!("{signed}?signature=1")));
    add(&db, "flux", &url, "checkpoints/flux.bin", &sum("sha256sum", &flux), true, &["vae", "clip"]).await;

    let vae = content(2, LARGE);
    let url = store.put("/vae", Way::EndsEarly(vae.clone()));
    add(&db, "vae", &url, "vae/my vae.bin", &sum("md5sum", &vae), false, &["absent"]).await;

    let clip = content(3, 700_000);
    let url = hub.put_for_token("/clip", Way::EndsEarly(clip.clone()));
    add(&db, "clip", &url, "clip.bin", &format!("sha-512:{}", sum("sha512sum", &clip)), true, &[]).await;

    let url = store.put("/unhashed", Way::File(content(4, 50_000)));
    add(&db, "unhashed", &url, "loras/a/b/unhashed.bin", "", false, &[]).await;

    let url = store.put("/wrong", Way::File(content(5, 1_000)));
    add(&db, "wrong", &url, "loras/wrong.bin", &sum("sha256sum", b"another"), false, &[]).await;

    let url = store.put("/gone", Way::Status(404));
    add(&db, "gone", &url, "loras/gone.bin", "", false, &[]).await;
    let server = Server::start(&db).await;
    machine.catalog(&server);
    (db, server)
}

const ALL: &str = " flux, unhashed,wrong ,gone,no-such-model,";
const FILES: [&str; 4] = ["checkpoints/flux.bin", "clip.bin", "loras/a/b/unhashed.bin", "vae/my vae.bin"];

#[tokio::test]
async fn empty_folder_is_filled_and_missing_models_stop_nothing() {
    let mut machine = Machine::new("empty", ALL);
    let (_db, _server) = catalog(&mut machine).await;
    let boot = machine.boot(&["sh", "-c", "echo \"started in $PWD with $HF_TOKEN\""]);
    let started = format!("started in / with {}\n", machine.token);
    assert_eq!((boot.status, boot.output), (0, started), "{}", boot.log);
    assert_eq!(machine.files(), FILES, "{}", boot.log);
    for (path, seed, length) in
        [(FILES[0], 1, LARGE), (FILES[1], 3, 700_000), (FILES[2], 4, 50_000), (FILES[3], 2, LARGE)]
    {
        assert!(machine.read(path) == Some(content(seed, length)), "{path} differs");
    }
    for line in [
        r#"missing model="no-such-model" reason="it is not in the catalog""#,
        r#"missing model="absent" reason="\"vae\" depends on it, and it is not in the catalog""#,
        r#"missing model="wrong" reason="its hash does not match the one in the catalog""#,
        r#"missing model="gone" reason="127.0.0.1 returned status 404: the URL in the catalog is dead""#,
        "models=6 fetched=4 present=0 linked=0 missing=4",
    ] {
        assert!(boot.log.contains(line), "no `{line}` in {}", boot.log);
    }
    let requests = machine.store.take_requests();
    assert!(requests.iter().all(|request| request.token.is_none()), "{requests:?}");
    let resumed = |range: &str| !range.starts_with("bytes=0-");
    assert!(
        requests.iter().any(|request| request.path == "/vae" && request.range.as_deref().is_some_and(resumed)),
        "{requests:?}"
    );
    let vae: usize = requests.iter().filter(|request| request.path == "/vae").map(|request| request.sent).sum();
    assert!(vae < LARGE * 5 / 4, "the file that broke off was downloaded twice: {vae} bytes");
    // An expired URL is resolved again, and the transfer resumes.
    let requests = machine.hub.take_requests();
    assert_eq!(requests.iter().filter(|request| request.path == "/flux").count(), 2, "{requests:?}");
    let clip: usize = requests.iter().filter(|request| request.path == "/clip").map(|request| request.sent).sum();
    assert_eq!(clip, 700_000 + 1, "{requests:?}");

    // Without a command, the exit status reports missing models.
    let again = machine.boot(&[]);
    assert_eq!(again.status, 1, "{}", again.log);
    assert!(again.log.contains("models=6 fetched=0 present=4 linked=0 missing=4"), "{}", again.log);
}

#[tokio::test]
async fn existing_files_are_not_downloaded_again() {
    let mut machine = Machine::new("half", "flux,unhashed");
    let (_db, _server) = catalog(&mut machine).await;
    machine.put(FILES[0], &content(1, LARGE));
    machine.put(FILES[2], &content(9, 50_000));
    // The right size, but the wrong content.
    machine.put(FILES[3], &content(8, LARGE));
    let boot = machine.boot(&[]);
    assert!(boot.log.contains("models=4 fetched=2 present=2 linked=0 missing=1"), "{}", boot.log);
    assert_eq!(machine.read(FILES[3]), Some(content(2, LARGE)));
    let requests = [machine.hub.take_requests(), machine.store.take_requests()].concat();
    assert!(requests.iter().all(|request| request.path != "/flux"), "{requests:?}");
    let sent =
        |path: &str| requests.iter().filter(|request| request.path == path).map(|request| request.sent).sum::<usize>();
    assert_eq!((sent("/unhashed"), sent("/clip")), (1, 700_001), "{requests:?}");

    // A file without a hash is checked by its size, so half a file is not accepted.
    machine.put(FILES[2], &content(4, 25_000));
    let boot = machine.boot(&[]);
    assert!(boot.log.contains("models=4 fetched=1 present=3"), "{}", boot.log);
    assert_eq!(machine.read(FILES[2]), Some(content(4, 50_000)));
    let requests = machine.store.take_requests();
    assert!(requests.iter().all(|request| request.path == "/unhashed"), "{requests:?}");

    // If its server is down, the size in the catalog is used.
    machine.store.put("/unhashed", Way::Status(503));
    let boot = machine.boot(&[]);
    assert!(boot.log.contains("models=4 fetched=0 present=4"), "{}", boot.log);
}

#[tokio::test]
async fn strict_mode_starts_no_command_while_a_model_is_missing() {
    let mut machine = Machine::new("strict", "flux");
    let (db, server) = catalog(&mut machine).await;
    machine.set("MACHINE_MODELS_STRICT", "1");
    let boot = machine.boot(&["echo", "started"]);
    assert_eq!((boot.status, &*boot.output), (1, ""), "{}", boot.log);
    assert!(boot.log.contains("MACHINE_MODELS_STRICT is set: the command is not started command=echo"), "{}", boot.log);

    db.sql("UPDATE models SET dependencies = '[]' WHERE id = 'vae'").await;
    server
        .until("nothing is missing", |s| async { s.field("vae", "dependencies").await == serde_json::json!([]) })
        .await;
    let boot = machine.boot(&["sh", "-c", "echo started; exit 7"]);
    assert_eq!((boot.status, &*boot.output), (7, "started\n"), "{}", boot.log);

    machine.set("MACHINE_MODELS_NEEDED", "");
    machine.set("CATALOG_URL", "");
    let boot = machine.boot(&["echo", "started"]);
    assert_eq!((boot.status, &*boot.output, &*boot.log), (0, "started\n", ""));
}

#[tokio::test]
async fn unreachable_catalog_is_retried_then_skipped() {
    let mut machine = Machine::new("away", "unhashed");
    let (db, _server) = catalog(&mut machine).await;
    let address = format!("127.0.0.1:{}", free_port().unwrap());
    let listener = TcpListener::bind(&address).unwrap();
    machine.set("CATALOG_URL", &format!("http://{address}"));
    machine.set("MACHINE_MODELS_WAIT", "60");
    let boot = machine.spawn(&["echo", "started"]);
    // The first attempt fails, and the next one finds the server.
    drop(listener.accept().unwrap());
    drop(listener);
    let server = Server::start_with(&db.url, &[("CATALOG_ADDR", &address)]).await;
    let boot = machine.ended(boot);
    assert_eq!((boot.status, &*boot.output), (0, "started\n"), "{}", boot.log);
    assert_eq!(machine.files(), [FILES[2]], "{}", boot.log);

    drop(server);
    machine.set("MACHINE_MODELS_WAIT", "1");
    for (strict, status, output) in [("0", 0, "started\n"), ("1", 1, "")] {
        machine.set("MACHINE_MODELS_STRICT", strict);
        let boot = machine.boot(&["echo", "started"]);
        assert_eq!((boot.status, &*boot.output), (status, output), "{}", boot.log);
        assert!(
            boot.log.contains("cannot get the models from the catalog: no response from 127.0.0.1"),
            "{}",
            boot.log
        );
    }
}

#[tokio::test]
async fn full_disk_and_conflicting_paths_are_reported() {
    let mut machine = Machine::new("space", "huge,unhashed,twin,rival,small");
    let (db, server) = catalog(&mut machine).await;
    let url = machine.store.put("/huge", Way::File(content(6, 100)));
    add(&db, "huge", &url, "huge.bin", &sum("sha1sum", &content(6, 100)), false, &[]).await;
    add(&db, "twin", &format!("http://{}/unhashed", machine.store.address), FILES[2], "", false, &[]).await;
    add(&db, "rival", &url, FILES[2], "", false, &[]).await;
    add(&db, "small", &url, "small.bin", "", false, &[]).await;
    db.sql(
        "UPDATE models SET file_size_gb = CASE id WHEN 'huge' THEN 90000000 ELSE 7.5 END WHERE id IN ('huge', 'small')",
    )
    .await;
    server.until("small has a size", |s| async move { s.field("small", "file_size_gb").await == 7.5 }).await;
    let boot = machine.boot(&[]);
    for line in [
        r#"missing model="huge" reason="it needs 90000000000000000 bytes, but only "#,
        r#"missing model="rival" reason="another model has the save path loras/a/b/unhashed.bin""#,
        r#"missing model="small" reason="the file has 100 bytes on the server, but 7500000000 in the catalog""#,
        "models=4 fetched=1 present=0 linked=0 missing=3",
    ] {
        assert!(boot.log.contains(line), "no `{line}` in {}", boot.log);
    }
    assert_eq!(machine.files(), [FILES[2]]);
}

#[tokio::test]
async fn interrupted_pull_resumes() {
    let mut machine = Machine::new("ended", "slow");
    let db = Db::new().await;
    let file = content(7, LARGE);
    let url = machine.store.put("/slow", Way::Stalls(file.clone()));
    // Without a hash and an entity tag, nothing says that the file is the same in the next run.
    machine.store.tag("/slow", "\"a\"");
    add(&db, "slow", &url, "slow.bin", "", false, &[]).await;
    let server = Server::start(&db).await;
    machine.catalog(&server);
    let boot = machine.spawn(&["echo", "started"]);
    // The process writes its journal when it is stopped, too, but does not wait long for a slow disk.
    until("the journal records half of it", || async {
        let files = std::fs::read_dir(machine.models().join(".model-catalog")).into_iter().flatten().flatten();
        let journals = files.filter_map(|file| serde_json::from_slice(&std::fs::read(file.path()).ok()?).ok());
        let mut received = journals.filter_map(|journal: serde_json::Value| journal["gaps"][0][0].as_u64());
        received.any(|bytes| bytes > LARGE as u64 / 3)
    })
    .await;
    assert!(Command::new("kill").args(["-TERM", &boot.id().to_string()]).status().unwrap().success());
    let boot = machine.ended(boot);
    assert_eq!((boot.status, &*boot.output), (143, ""), "{}", boot.log);
    assert!(machine.read("slow.bin").is_none());

    machine.store.put("/slow", Way::File(file.clone()));
    machine.store.take_requests();
    let boot = machine.boot(&["echo", "started"]);
    assert_eq!((boot.status, &*boot.output), (0, "started\n"), "{}", boot.log);
    assert!(machine.read("slow.bin") == Some(file));
    let from = |range: &String| range.strip_prefix("bytes=")?.split('-').next()?.parse::<usize>().ok();
    let requests = machine.store.take_requests();
    let resumed =
        requests.iter().filter_map(|request| request.range.as_ref().and_then(from)).any(|from| from > LARGE / 4);
    assert!(resumed, "it was downloaded from the beginning: {requests:?}");
}

#[tokio::test]
async fn pulls_that_share_a_folder_divide_the_files() {
    let mut machine = Machine::new("turns", "flux,unhashed");
    let (_db, _server) = catalog(&mut machine).await;
    let mut boots: Vec<_> = (0..3).map(|_| machine.spawn(&[])).collect();
    for boot in &mut boots {
        boot.wait().unwrap();
    }
    let logs: Vec<_> = boots.into_iter().map(|boot| machine.ended(boot).log).collect();
    // Each file is downloaded once and found by the others.
    let sum = |field: &str| -> usize {
        let number = |log: &String| log.split_once(field)?.1.split(' ').next()?.parse::<usize>().ok();
        logs.iter().filter_map(number).sum()
    };
    assert_eq!((sum(" fetched="), sum(" present=")), (4, 8), "{logs:#?}");
    assert_eq!(machine.files(), FILES);
}

#[tokio::test]
async fn aria2_accepts_the_input_file() {
    let mut machine = Machine::new("aria2", "-");
    let (_db, server) = catalog(&mut machine).await;
    let body = r#"{"model_ids":["vae","unhashed","wrong"],"resolve_dependencies":true}"#;
    let input = server.send(server.request("POST", "/api/models/batch?format=aria2", body)).await.text();
    std::fs::create_dir(machine.models()).unwrap();
    std::fs::write(machine.folder.join("input"), &input).unwrap();
    let options = ["--no-conf", "--input-file=../input", "--continue", "--console-log-level=error"];
    let done = Command::new("aria2c").args(options).current_dir(machine.models()).output().unwrap();
    let log = String::from_utf8_lossy(&done.stdout);
    assert_eq!(done.status.code(), Some(32), "a checksum differs: {log}{input}");
    assert!(log.contains("Checksum error detected. file=loras/wrong.bin"), "{log}");
    assert!(machine.read(FILES[3]) == Some(content(2, LARGE)) && machine.read(FILES[2]) == Some(content(4, 50_000)));
}

/// The commands in docs/gpu-machines.md, with this catalog's URL and this machine's folder.
#[tokio::test]
async fn documented_commands_download_the_models() {
    let mut machine = Machine::new("documented", "-");
    let db = Db::new().await;
    for (seed, id) in [(1, "clip-l"), (2, "flux-vae")] {
        let content = content(seed, 5_000);
        let url = machine.store.put(&format!("/{id}"), Way::File(content.clone()));
        add(&db, id, &url, &format!("vae/{id}"), &sum("sha256sum", &content), false, &[]).await;
    }
    let server = Server::start(&db).await;
    machine.catalog(&server);
    let root = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    for (command, directory, printed) in [
        ("model-catalog pull -- echo", &root, "ComfyUI starts here\n"),
        ("aria2c --input-file=-", &machine.models(), ""),
    ] {
        let models = machine.models();
        let documented = block(&["sh"], command);
        let script = documented
            .replace("http://127.0.0.1:3000", &format!("http://{}", server.address))
            .replace("/tmp/ComfyUI/models", models.to_str().unwrap());
        assert!(script != documented, "{documented}");
        std::fs::create_dir_all(&models).unwrap();
        let mut shell = Command::new("sh");
        shell.args(["-ec", &script]).current_dir(directory).env_clear();
        let program = std::path::Path::new(env!("CARGO_BIN_EXE_model-catalog")).parent().unwrap().display();
        let output = shell.env("PATH", format!("{program}:{}", std::env::var("PATH").unwrap())).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains(printed), "{output:?}");
        for (seed, id) in [(1, "clip-l"), (2, "flux-vae")] {
            assert!(machine.read(&format!("vae/{id}")) == Some(content(seed, 5_000)), "{id}: {output:?}");
        }
        std::fs::remove_dir_all(models).unwrap();
    }
}

#[test]
fn invalid_settings_of_the_log_do_not_stop_a_boot() {
    let mut machine = Machine::new("logsettings", "");
    machine.set("CATALOG_LOG", "loud!=[");
    machine.set("CATALOG_LOG_FORMAT", "xml");
    let boot = machine.boot(&["echo", "started"]);
    assert_eq!((boot.status, &*boot.output), (0, "started\n"), "{}", boot.log);
    for line in [r#"CATALOG_LOG is "loud!=[", which is invalid"#, r#"CATALOG_LOG_FORMAT is "xml", which is invalid"#] {
        assert!(boot.log.contains(line), "{}", boot.log);
    }
    // An option is an error: it was written for this command.
    machine.flags = vec!["--log-format=xml"];
    assert_eq!(machine.boot(&["echo", "started"]).status, 2);
}
