//! The HTML page, in a real browser.

use serde_json::{Value, json};

use crate::support::browser::Browser;
use crate::support::{Db, Server, TempFolder, start_with_model_a};

const HOSTILE: &str = "<img src=x onerror=\"window.hurt=1\">";

#[tokio::test]
async fn page_has_an_etag_and_allows_only_its_own_script() {
    let db = Db::lenient().await;
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
    let rejected = server.send(server.request("POST", "/", "")).await;
    assert_eq!((rejected.status, rejected.header("allow")), (405, "GET, HEAD"));
    assert_eq!(server.metric(r#"catalog_http_requests_total{route="/",status="304"}"#).await, 1.0);
}

#[tokio::test]
async fn page_is_usable_by_keyboard_shows_changes_and_renders_hostile_rows_as_text() {
    let db = Db::lenient().await;
    db.sql(include_str!("../../../sql/sample_models.sql")).await;
    db.sql(&format!(
        "INSERT INTO models (id, name, download_url, save_path, description, mirrors)
         VALUES ('{HOSTILE}', '{HOSTILE}', 'https://example.org/x?token=hush', 'x', 'javascript:window.hurt=1',
                 '[\"https://mirror.example/x?token=hush\"]')"
    ))
    .await;
    db.sql("INSERT INTO models VALUES ('bad-scheme', 'x', 'javascript:window.hurt=1', 1, NULL, false, NULL, 'x')")
        .await;
    let server = Server::start(&db).await;
    server.get("/api/models/sdxl-bse").await;
    let browser = Browser::start("page").await;
    browser.open(&format!("http://{}/", server.address)).await;
    browser.until("document.querySelectorAll('#rows tr').length === 25").await;
    browser.until("document.getElementById('health').textContent === 'Serving'").await;
    browser.until("document.getElementById('p99').textContent !== '–'").await;

    for (scheme, width) in [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)] {
        let screen = json!({"width": width, "height": 1400, "deviceScaleFactor": 1, "mobile": width < 500});
        browser.devtools("Emulation.setDeviceMetricsOverride", screen).await;
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        browser.devtools("Emulation.setEmulatedMedia", media).await;
        let brightness = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0] < 128";
        assert_eq!(browser.eval(brightness).await, scheme == "dark", "{scheme}");
        // Nothing overflows the viewport horizontally.
        assert_eq!(browser.eval("document.documentElement.scrollWidth <= innerWidth").await, true, "{width}");
        assert!(browser.screenshot(&format!("page-{scheme}-{width}")).await > 10_000);
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
    assert!(browser.screenshot("details").await > 10_000);
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
    browser.until("document.querySelectorAll('#fields dd').length === 11").await;
    let shown = browser.eval("document.body.innerText").await;
    let shown = shown.as_str().unwrap();
    assert!(
        shown.contains(HOSTILE) && shown.contains("https://example.org/x") && shown.contains("bad-scheme"),
        "{shown}"
    );
    assert!(shown.contains("sdxl-bse") && shown.contains("https://mirror.example/x"), "{shown}");
    assert!(!shown.contains("hush"), "{shown}");
    let harmless = "window.hurt === undefined && !document.querySelector('img') && ![...document.links].some((link) => !/^https?:/.test(link.href))";
    assert_eq!(browser.eval(harmless).await, true);

    let own = format!("http://{}/", server.address);
    for entry in browser.log("performance").await {
        let entry: Value = serde_json::from_str(&entry).unwrap();
        if entry["message"]["method"] == "Network.requestWillBeSent" {
            let url = entry["message"]["params"]["request"]["url"].as_str().unwrap();
            // `chrome:` is the browser's start page, which is built in.
            assert!([own.as_str(), "data:", "chrome:"].iter().any(|known| url.starts_with(known)), "{url}");
        }
    }
    assert_eq!(browser.log("browser").await, [""; 0]);

    drop(server);
    browser.until("document.getElementById('notice').textContent.includes('not responded since')").await;
    assert!(browser.screenshot("offline").await > 10_000);
    browser.quit().await;
}

/// Twelve minutes of measurements, with two minutes in which the page was hidden and five changes.
const MEASURED: &str = "measured = Array.from({length: 360}, (_, n) => ({
    at: Date.now() - (360 - n) * 2000, rate: n < 2 ? null : 400 + 180 * Math.sin(n / 40) + 60 * Math.sin(n * 1.7),
    p50: 3e-5 + 1e-5 * Math.sin(n / 25), p99: 9e-5 + 4e-5 * Math.sin(n / 9) ** 2,
    propagation: n % 70 === 9 ? .004 + n / 36000 : null})).filter((_, n) => n < 200 || n > 260)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn page_draws_charts_that_keys_and_screen_readers_can_read_and_the_fleet() {
    let db = Db::new().await;
    db.add("a").await;
    let settings = |name| [("CATALOG_POLL_INTERVAL", "200ms"), ("CATALOG_REPLICA_NAME", name)];
    let server = Server::start_with(&db.url, &settings("eu-1")).await;
    let other = Server::start_with(&db.url, &settings("eu-2")).await;
    let browser = Browser::start("charts").await;
    browser.open(&format!("http://{}/", server.address)).await;
    // Below the models until there is something to draw.
    let above = "document.getElementById('charts').compareDocumentPosition(document.getElementById('rows')) === \
                 Node.DOCUMENT_POSITION_FOLLOWING";
    assert_eq!(browser.eval(above).await, false);
    let heights = "[...document.querySelectorAll('figure')].map((figure) => figure.clientHeight).join()";
    let empty = browser.eval(heights).await;

    browser.until("document.getElementById('propagation-value').textContent === 'no change yet'").await;
    db.sql("UPDATE models SET name = 'changed'").await;
    for _ in 0..50 {
        server.get("/api/models/a").await;
    }
    let drawn = "['rate', 'time', 'propagation'].every((name) => \
                 document.querySelector('#' + name + '-chart path').getAttribute('d').startsWith('M'))";
    browser.until(drawn).await;
    browser.until(above).await;
    browser.until("/^p50 .*s, p99 .*s, highest .*s$/.test(document.getElementById('time-value').textContent)").await;
    browser.until("document.querySelectorAll('#fleet-rows tr').length === 2").await;
    let state = |row: &str| format!("[...document.querySelectorAll('#fleet-rows {row} td')].map((td) => td.innerText)");
    let revision = other.get("/api/models/a").await.revision();
    browser.until(&format!("{}.join() === 'eu-1,{revision},in sync'", state("tr:first-child"))).await;
    other.signal("STOP");
    db.sql("UPDATE models SET name = 'behind'").await;
    browser.until(&format!("{}.join() === 'eu-2,{revision},behind'", state("tr:first-child"))).await;

    browser.eval(&format!("({MEASURED}, charts.forEach(draw))")).await;
    let parts = "document.querySelector('#rate-chart path').getAttribute('d').split('M').length - 1";
    browser.until(&format!("{parts} === 2")).await;
    assert_eq!(
        browser.eval("document.querySelector('#propagation-chart path').getAttribute('d').match(/M/g).length").await,
        5
    );
    assert_eq!(browser.eval("document.getElementById('rate-top').textContent").await, "1,000 /s");
    for (scheme, width) in [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)] {
        let screen = json!({"width": width, "height": 1900, "deviceScaleFactor": 1, "mobile": width < 500});
        browser.devtools("Emulation.setDeviceMetricsOverride", screen).await;
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        browser.devtools("Emulation.setEmulatedMedia", media).await;
        assert_eq!(browser.eval("document.documentElement.scrollWidth <= innerWidth").await, true, "{width}");
        assert!(browser.screenshot(&format!("charts-{scheme}-{width}")).await > 10_000);
    }
    browser.devtools("Emulation.clearDeviceMetricsOverride", json!({})).await;
    assert_eq!(browser.eval(heights).await, empty, "the charts moved what is below them");

    // Keys select a point; its value is shown and read out.
    let value = "document.getElementById('rate-value').textContent";
    let read_out = "document.getElementById('rate-chart').getAttribute('aria-valuetext')";
    browser.eval("document.getElementById('rate-chart').focus()").await;
    browser.press("\u{e011}").await;
    browser.until(&format!("/^– at ..:..:..$/.test({value}) && {value} === {read_out}")).await;
    browser.press("\u{e014}\u{e014}\u{e014}").await;
    browser.until(&format!("/^[0-9.]+ .s at ..:..:..$/.test({value})")).await;
    let cursor = "document.querySelector('#rate-chart .cursor').getAttribute('d').startsWith('M')";
    assert_eq!(browser.eval(cursor).await, true);
    assert!(browser.screenshot("charts-selected").await > 10_000);
    browser.press("\u{e00c}").await;
    browser.until(&format!("{value}.includes('highest') && !{cursor}")).await;
    for name in ["rate", "time", "propagation"] {
        let title = format!(
            "document.getElementById(document.getElementById('{name}-chart').getAttribute('aria-labelledby')).textContent.length > 5"
        );
        assert_eq!(browser.eval(&title).await, true, "{name} has no accessible name");
    }
    assert_eq!(browser.log("browser").await, [""; 0]);
    other.signal("CONT");
    browser.quit().await;
}

#[tokio::test]
async fn page_explains_missing_metrics_when_ops_have_their_own_address() {
    let db = Db::lenient().await;
    db.add("a").await;
    let server = Server::spawn(&db.url, &[("CATALOG_ADMIN_ADDR", "127.0.0.1:0")]).await;
    let browser = Browser::start("separate").await;
    browser.open(&format!("http://{}/", server.address)).await;
    browser.until("document.querySelectorAll('#rows tr').length === 1").await;
    browser.until("document.getElementById('health').textContent === 'Serving'").await;
    let hidden = "!document.getElementById('separate').hidden && document.getElementById('rate').parentElement.hidden";
    assert_eq!(browser.eval(hidden).await, true);
    browser.quit().await;
}

#[tokio::test]
async fn page_shows_list_pages_and_empty_results() {
    let db = Db::lenient().await;
    let server = Server::start(&db).await;
    let browser = Browser::start("pages").await;
    let says = async |id: &str, text: &str| {
        browser.until(&format!("document.getElementById('{id}').textContent === {}", json!(text))).await;
    };
    let click = async |id: &str| browser.eval(&format!("document.getElementById('{id}').click()")).await;
    browser.open(&format!("http://{}/", server.address)).await;
    says("found", "The catalog is empty.").await;
    says("rejected-note", "None.").await;
    let advice = "document.getElementById('advice').innerText.trim()";
    let import = "Insert rows into the tables of the database, or import a list: model-catalog import model-list.json";
    assert_eq!(browser.eval(advice).await, import);
    db.sql("INSERT INTO models (id, name, download_url, save_path) VALUES ('bad', 'x', 'x', 'x')").await;
    browser.until(&format!("{advice} === 'All rows are rejected, for the reasons below.'")).await;
    let served = "document.querySelector('#rejected-rows td:last-child').textContent";
    assert_eq!(browser.eval(served).await, "not served");
    assert!(browser.screenshot("empty").await > 10_000);

    for number in 100..160 {
        db.add(&format!("m-{number}")).await;
    }
    says("found", "60 models, page 1 of 3").await;
    assert_eq!(browser.eval("document.getElementById('advice').hidden").await, true);
    assert_eq!(browser.eval("document.getElementById('previous').disabled").await, true);
    click("next").await;
    says("found", "60 models, page 2 of 3").await;
    browser.until("document.querySelector('#rows a').model === 'm-125'").await;
    click("next").await;
    says("found", "60 models, page 3 of 3").await;
    assert_eq!(browser.eval("document.getElementById('next').disabled").await, true);
    // The models of the page that is shown are deleted.
    db.sql("DELETE FROM models WHERE id >= 'm-150'").await;
    says("found", "50 models, page 2 of 2").await;
    click("previous").await;
    says("found", "50 models, page 1 of 2").await;

    browser.press("/no such").await;
    says("found", "No id or name contains “no such”.").await;
    browser.quit().await;
}

#[tokio::test]
async fn search_and_details_are_in_the_address_and_back_works() {
    let db = Db::lenient().await;
    db.sql(include_str!("../../../sql/sample_models.sql")).await;
    db.add("ä/b #1").await;
    let server = Server::start(&db).await;
    let browser = Browser::start("address").await;
    let address = async |expected: &str| {
        browser.until(&format!("location.pathname + location.search + location.hash === {}", json!(expected))).await;
    };
    let found = async |text: &str| {
        browser.until(&format!("document.getElementById('found').textContent === {}", json!(text))).await;
    };
    // The id that the open dialog shows, or nothing.
    let details = async |id: &str| {
        let shown = "document.getElementById('details').open ? document.querySelectorAll('#fields dd')[0]?.innerText.trim() : ''";
        browser.until(&format!("({shown}) === {}", json!(id))).await;
    };
    let back = async || browser.eval("history.back()").await;

    browser.open(&format!("http://{}/", server.address)).await;
    found("60 models, page 1 of 3").await;
    browser.press("/LTXV").await;
    found("2 models matching “LTXV”").await;
    address("/?q=LTXV").await;
    browser.press("\u{e004}\u{e007}").await;
    details("ltxv-13b-098-fp8").await;
    address("/?q=LTXV#ltxv-13b-098-fp8").await;
    // A dependency.
    browser.eval("document.querySelector('#fields a[href=\"#t5xxl-fp16\"]').click()").await;
    details("t5xxl-fp16").await;
    back().await;
    details("ltxv-13b-098-fp8").await;
    browser.press("\u{e00c}").await;
    details("").await;
    address("/?q=LTXV").await;
    back().await;
    details("ltxv-13b-098-fp8").await;
    back().await;
    details("").await;
    found("2 models matching “LTXV”").await;
    back().await;
    found("60 models, page 1 of 3").await;
    address("/").await;
    assert_eq!(browser.eval("document.getElementById('search').value").await, "");

    // An address that somebody was given, with the rest of the ids that need encoding.
    browser.open("about:blank").await;
    browser.open(&format!("http://{}/?q=%C3%84%2F#%C3%A4%2Fb%20%231", server.address)).await;
    details("ä/b #1").await;
    found("1 model matching “Ä/”").await;
    browser.eval("document.getElementById('close').click()").await;
    address("/?q=%C3%84%2F").await;
    browser.open("about:blank").await;
    browser.open(&format!("http://{}/#%zz", server.address)).await;
    found("60 models, page 1 of 3").await;
    assert_eq!(browser.log("browser").await, [""; 0]);
    browser.quit().await;
}

#[tokio::test]
async fn page_reports_a_missing_catalog_and_an_exceeded_rate_limit() {
    let browser = Browser::start("errors").await;
    let says = async |id: &str, text: &str| {
        browser.until(&format!("document.getElementById('{id}').textContent.includes({})", json!(text))).await;
    };
    let server = Server::spawn("host=/nowhere user=nobody", &[]).await;
    browser.open(&format!("http://{}/", server.address)).await;
    says("health", "Loading").await;
    // The reason in the log, without the connection string.
    says("notice", "Catalog not loaded yet: cannot connect to the database at /nowhere/.s.PGSQL.5432 (DATABASE_URL): ")
        .await;
    assert!(browser.screenshot("loading").await > 10_000);
    drop(server);

    // With a snapshot file there are models, and the same reason.
    let folder = TempFolder::new("page");
    let file = folder.join("snapshot");
    let file = [("CATALOG_SNAPSHOT_FILE", file.to_str().unwrap())];
    let (_db, server) = start_with_model_a(&file).await;
    server.until("the file is written", |_| std::future::ready(folder.join("snapshot").exists())).await;
    drop(server);
    let server = Server::spawn("host=/nowhere user=nobody", &file).await;
    browser.open(&format!("http://{}/", server.address)).await;
    says("found", "1 model").await;
    says("health", "Serving the snapshot file").await;
    let notice = "Changes are not received: cannot connect to the database at /nowhere/.s.PGSQL.5432 (DATABASE_URL): ";
    says("notice", notice).await;
    drop(server);

    let db = Db::lenient().await;
    db.add("a").await;
    // The page sends two API requests when it opens, then one every two seconds.
    let limits = [("CATALOG_RATE_LIMIT", "1"), ("CATALOG_RATE_BURST", "2")];
    let server = Server::spawn(&db.url, &limits).await;
    server.until("the catalog is loaded", |s| async move { s.get("/readyz").await.status == 200 }).await;
    browser.open(&format!("http://{}/", server.address)).await;
    says("found", "1 model").await;
    // Another client with the same address exhausts the limit.
    let greedy = async {
        loop {
            server.get("/api/models/a").await;
        }
    };
    tokio::select! {
        () = greedy => {}
        () = says("notice", "rate limit") => {}
    }
    assert_eq!(browser.eval("document.getElementById('health').textContent").await, "Serving");
    browser.until("document.getElementById('notice').hidden").await;
    browser.quit().await;
}
