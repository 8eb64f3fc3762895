//! Which hosts receive a token.

use super::files::Way;
use super::{Machine, add, content};
use crate::support::{Db, Server};

const PLACES: [&str; 8] = ["direct", "open", "loop", "back", "lookalike", "user", "elsewhere", "downgrade"];

/// Models whose URLs require a token, or must not receive one, with every kind of redirect.
async fn catalog(machine: &mut Machine) -> (Db, Server) {
    let db = Db::new().await;
    let (hub, store) = (&machine.hub, &machine.store);
    let file = content(1, 5_000);
    let direct = hub.put_for_token("/direct", Way::File(file.clone()));
    let open = hub.put("/open", Way::File(file.clone()));
    let stored = store.put("/stored", Way::File(file.clone()));
    let circle = hub.put("/loop", Way::Redirect(307, "/loop".into()));
    // From the hub to the store and back: the hub may receive its token again.
    let bounce = store.put("/bounce", Way::Redirect(301, direct.clone()));
    let back = hub.put_for_token("/back", Way::Redirect(302, bounce));
    let port = hub.address.rsplit(':').next().unwrap();
    // The catalog rejects rows with a user name, but a host may redirect to such a URL.
    let with_user =
        |path: &str, user: &str| store.put(path, Way::Redirect(302, format!("http://{user}@{}/stored", store.address)));
    let lookalike = with_user("/lookalike", &hub.address);
    let user = with_user("/user", &format!("127.0.0.1:{port}"));
    let downgrade = hub.put_for_token("/downgrade", Way::Redirect(308, "ftp://127.0.0.1:1/x".into()));
    for (id, url) in PLACES.into_iter().zip([&direct, &open, &circle, &back, &lookalike, &user, &stored, &downgrade]) {
        add(&db, id, url, id, "", id != "open", &[]).await;
    }
    let server = Server::start(&db).await;
    machine.catalog(&server);
    machine.set("MACHINE_MODELS_NEEDED", &PLACES.join(","));
    (db, server)
}

#[tokio::test]
async fn tokens_are_sent_only_to_their_provider() {
    let mut machine = Machine::new("hosts", "");
    let (_db, _server) = catalog(&mut machine).await;
    let boot = machine.boot(&["sh", "-c", "test -n \"$HF_TOKEN\""]);
    assert_eq!(boot.status, 0, "{}", boot.log);
    assert_eq!(machine.files(), ["back", "direct", "elsewhere", "lookalike", "open", "user"], "{}", boot.log);
    for line in [
        r#"model="loop" reason="more than 10 redirects""#,
        r#"model="downgrade" reason="127.0.0.1 redirects to a URL that is neither http nor https""#,
    ] {
        assert!(boot.log.contains(line), "no `{line}` in {}", boot.log);
    }
    let (hub, store) = (machine.hub.take_requests(), machine.store.take_requests());
    let bearer = Some(format!("Bearer {}", machine.token));
    assert!(hub.iter().all(|request| request.token == bearer || request.path == "/open"), "{hub:?}");
    assert!(
        hub.iter().all(|request| request.token.is_none() || request.path != "/open"),
        "a token was sent without auth_required: {hub:?}"
    );
    // User information in the URL is sent to the store; the token is not.
    assert!(store.iter().all(|request| request.token != bearer), "{store:?}");
    assert!(store.len() >= 7, "{store:?}");
}

#[tokio::test]
async fn invalid_endpoint_gets_no_token() {
    let mut machine = Machine::new("endpoint", "");
    let (_db, _server) = catalog(&mut machine).await;
    machine.set("MACHINE_MODELS_NEEDED", "direct");
    machine.set("CIVITAI_TOKEN", &machine.token.clone());
    let (hub, token) = (machine.hub.address.clone(), machine.token.clone());
    let port = hub.rsplit(':').next().unwrap();
    let endpoints = [
        String::new(),
        format!("http://localhost:{port}"),
        format!("https://{hub}"),
        "http://127.0.0.1".into(),
        format!("http://x@{hub}"),
        hub.clone(),
    ];
    for endpoint in endpoints {
        machine.set("HF_ENDPOINT", &endpoint);
        let boot = machine.boot(&[]);
        assert!(
            boot.log.contains(r#"model="direct" reason="127.0.0.1 returned status 401: it requires a token"#),
            "{endpoint}: {}",
            boot.log
        );
        assert!(machine.hub.take_requests().iter().all(|request| request.token.is_none()), "{endpoint}");
    }
    // Accepted as by the hub's own client: trailing slashes and surrounding white space.
    machine.set("HF_ENDPOINT", &format!("HTTP://{hub}//"));
    machine.set("HF_TOKEN", &format!(" {token}\r\n"));
    assert_eq!(machine.boot(&[]).status, 0);
    assert_eq!(machine.files(), ["direct"]);

    // Values that cannot be tokens are neither sent nor shown.
    machine.set("HF_TOKEN", &format!("{token}\"\nurl = \"x"));
    std::fs::remove_file(machine.models().join("direct")).unwrap();
    let boot = machine.boot(&[]);
    assert!(boot.log.contains("HF_TOKEN is ignored") && boot.status == 1, "{}", boot.log);
}
