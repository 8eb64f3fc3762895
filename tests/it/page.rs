//! The page for people, in a real browser.

use serde_json::{Value, json};

use crate::browser::Browser;
use crate::support::{Db, Server};

const HOSTILE: &str = "<img src=x onerror=\"window.hurt=1\">";

#[tokio::test]
async fn it_is_kept_by_its_tag_and_lets_nothing_but_its_own_script_run() {
    let db = Db::new().await;
    let server = Server::start(&db).await;
    let page = server.get("/").await;
    assert_eq!((page.status, page.header("content-type")), (200, "text/html; charset=utf-8"));
    let policy = page.header("content-security-policy");
    for part in ["default-src 'none'; script-src 'sha256-", "; connect-src 'self';", "; frame-ancestors 'none';"] {
        assert!(policy.contains(part) && !policy.contains("unsafe"), "{policy}");
    }
    let head = server.send(server.request("HEAD", "/", "")).await;
    assert_eq!((head.status, head.header("content-length")), (200, &*page.body.len().to_string()));
    let mut known = server.request("GET", "/", "");
    known.headers_mut().insert("if-none-match", page.header("etag").parse().unwrap());
    assert_eq!(server.send(known).await.status, 304);
    let refused = server.send(server.request("POST", "/", "")).await;
    assert_eq!((refused.status, refused.header("allow")), (405, "GET, HEAD"));
    assert_eq!(server.metric(r#"catalog_http_requests_total{route="/",status="304"}"#).await, 1.0);
}

#[tokio::test]
async fn people_search_by_keyboard_see_changes_and_hostile_rows_do_nothing() {
    let db = Db::new().await;
    db.sql(include_str!("../../sql/sample_models.sql")).await;
    db.sql(&format!(
        "INSERT INTO models (id, name, download_url, save_path, description)
         VALUES ('{HOSTILE}', '{HOSTILE}', 'https://example.org/x?token=hush', 'x', 'javascript:window.hurt=1')"
    ))
    .await;
    db.sql("INSERT INTO models VALUES ('climber', 'x', 'javascript:window.hurt=1', 1, NULL, false, NULL, 'x')").await;
    let server = Server::start(&db).await;
    server.get("/api/models/sdxl-bse").await;
    let browser = Browser::start("page").await;
    browser.open(&format!("http://{}/", server.address)).await;
    browser.until("document.querySelectorAll('#rows tr').length === 25").await;
    browser.until("document.getElementById('health').textContent === 'Serving'").await;
    browser.until("document.getElementById('p99').textContent !== '–'").await;

    for (scheme, width) in [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)] {
        let screen = json!({"width": width, "height": 1400, "deviceScaleFactor": 1, "mobile": width < 500});
        browser.tools("Emulation.setDeviceMetricsOverride", screen).await;
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        browser.tools("Emulation.setEmulatedMedia", media).await;
        let brightness = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0] < 128";
        assert_eq!(browser.eval(brightness).await, scheme == "dark", "{scheme}");
        // Nothing is wider than the screen.
        assert_eq!(browser.eval("document.documentElement.scrollWidth <= innerWidth").await, true, "{width}");
        assert!(browser.picture(&format!("page-{scheme}-{width}")).await > 10_000);
    }

    // `/`, the text, Tab to the first row, Enter.
    browser.press("/FLUX1-DEV").await;
    let found = "document.querySelector('#rows tr') && document.getElementById('rows').textContent.includes('flux-dev') \
                 && document.querySelectorAll('#rows tr').length < 5";
    browser.until(found).await;
    browser.press("\u{e004}\u{e007}").await;
    browser
        .until("document.getElementById('details').open && document.querySelectorAll('#fields dd').length === 10")
        .await;
    assert_eq!(browser.eval("document.querySelector('#fields a').rel").await, "noopener noreferrer");
    assert!(browser.picture("details").await > 10_000);
    db.sql("UPDATE models SET description = 'changed just now' WHERE id = 'flux-dev'").await;
    browser.until("document.getElementById('fields').textContent.includes('changed just now')").await;
    browser.press("\u{e00c}").await;
    browser.until("!document.getElementById('details').open").await;
    db.sql("UPDATE models SET name = 'flux1-dev renamed' WHERE id = 'flux-dev'").await;
    browser.until("document.getElementById('rows').textContent.includes('flux1-dev renamed')").await;

    browser.eval("document.getElementById('search').focus()").await;
    browser.eval("document.getElementById('search').select()").await;
    browser.press("onerror").await;
    browser.until("document.querySelectorAll('#rows tr').length === 1").await;
    browser.press("\u{e004}\u{e007}").await;
    browser.until("document.querySelectorAll('#fields dd').length === 10").await;
    let shown = browser.eval("document.body.innerText").await;
    let shown = shown.as_str().unwrap();
    assert!(shown.contains(HOSTILE) && shown.contains("https://example.org/x") && shown.contains("climber"), "{shown}");
    assert!(shown.contains("sdxl-bse"), "{shown}");
    assert!(!shown.contains("hush"), "{shown}");
    let nothing = "window.hurt === undefined && !document.querySelector('img') && ![...document.links].some((link) => !/^https?:/.test(link.href))";
    assert_eq!(browser.eval(nothing).await, true);

    let own = format!("http://{}/", server.address);
    for entry in browser.log("performance").await {
        let entry: Value = serde_json::from_str(&entry).unwrap();
        if entry["message"]["method"] == "Network.requestWillBeSent" {
            let url = entry["message"]["params"]["request"]["url"].as_str().unwrap();
            // `chrome:` is the browser's own start page, out of its own files.
            assert!([own.as_str(), "data:", "chrome:"].iter().any(|known| url.starts_with(known)), "{url}");
        }
    }
    assert_eq!(browser.log("browser").await, [""; 0]);

    drop(server);
    browser.until("document.getElementById('notice').textContent.includes('no answer since')").await;
    assert!(browser.picture("offline").await > 10_000);
    browser.quit().await;
}

#[tokio::test]
async fn with_operations_apart_it_shows_the_rest_and_says_why() {
    let db = Db::new().await;
    db.add("a").await;
    let server = Server::spawn(&db.url, &[("CATALOG_ADMIN_ADDR", "127.0.0.1:0")]).await;
    let browser = Browser::start("apart").await;
    browser.open(&format!("http://{}/", server.address)).await;
    browser.until("document.querySelectorAll('#rows tr').length === 1").await;
    browser.until("document.getElementById('health').textContent === 'Serving'").await;
    let hidden = "!document.getElementById('apart').hidden && document.getElementById('rate').parentElement.hidden";
    assert_eq!(browser.eval(hidden).await, true);
    browser.quit().await;
}
