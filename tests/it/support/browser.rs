//! Headless Chromium, driven through the WebDriver port of chromedriver: keys, clicks, screenshots.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use base64::Engine;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use crate::support::{TempFolder, until};

/// One browser with one page.
pub struct Browser {
    driver: Child,
    profile: TempFolder,
    session: String,
    http: Client<HttpConnector, Full<Bytes>>,
}

impl Browser {
    /// Starts the browser with an empty profile.
    pub async fn start(name: &str) -> Self {
        let profile = TempFolder::new(&format!("browser-{name}"));
        let mut command = Command::new("chromedriver");
        command.arg("--port=0").stdout(Stdio::piped()).stderr(Stdio::null());
        let mut driver = command.spawn().unwrap_or_else(|error| panic!("{error}: `make test-tools` installs it"));
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines().map_while(Result::ok);
        let port =
            lines.find_map(|line| Some(line.split_once("successfully on port ")?.1.trim_end_matches('.').to_owned()));
        let port = port.expect("chromedriver printed no port");
        std::thread::spawn(move || lines.for_each(drop));
        let http = Client::builder(TokioExecutor::new()).build_http();
        let mut browser = Self { driver, profile, session: format!("http://127.0.0.1:{port}/session"), http };
        let profile = format!("--user-data-dir={}", browser.profile.display());
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            &profile,
        ];
        let created = browser
            .call(
                "POST",
                "",
                &json!({"capabilities": {"alwaysMatch": {
                    "goog:chromeOptions": {"args": arguments},
                    "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
                }}}),
            )
            .await;
        browser.session = format!("{}/{}", browser.session, created["sessionId"].as_str().unwrap());
        browser
    }

    async fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if method == "POST" { body.to_string() } else { String::new() };
        let request = Request::builder().method(method).uri(format!("{}{path}", self.session));
        let response = self.http.request(request.body(Full::from(body)).unwrap()).await.unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let value = serde_json::from_slice::<Value>(&body).unwrap()["value"].take();
        assert!(value["error"].is_null(), "{method} {path}: {value:#}");
        value
    }

    /// Opens a URL.
    pub async fn open(&self, url: &str) {
        self.call("POST", "/url", &json!({ "url": url })).await;
    }

    /// The value of a JavaScript expression.
    pub async fn eval(&self, expression: &str) -> Value {
        let script = format!("return {expression}");
        self.call("POST", "/execute/sync", &json!({"script": script, "args": []})).await
    }

    /// Waits until an expression is true.
    pub async fn until(&self, expression: &str) {
        until(expression, || async { self.eval(expression).await == true }).await;
    }

    /// Sends key presses to the focused element.
    pub async fn press(&self, keys: &str) {
        let strokes = keys.chars().flat_map(|key| [("keyDown", key), ("keyUp", key)]);
        let actions: Vec<_> = strokes.map(|(kind, key)| json!({"type": kind, "value": key.to_string()})).collect();
        self.call("POST", "/actions", &json!({"actions": [{"type": "key", "id": "keys", "actions": actions}]})).await;
    }

    /// Sends a command of the Chrome DevTools Protocol.
    pub async fn devtools(&self, command: &str, parameters: Value) {
        self.call("POST", "/goog/cdp/execute", &json!({"cmd": command, "params": parameters})).await;
    }

    /// Takes a screenshot and returns its size in bytes; it is saved if `SCREENSHOTS` names a directory.
    pub async fn screenshot(&self, name: &str) -> usize {
        let screenshot = self.call("GET", "/screenshot", &Value::Null).await;
        let png = base64::prelude::BASE64_STANDARD.decode(screenshot.as_str().unwrap()).unwrap();
        if let Some(directory) = std::env::var_os("SCREENSHOTS") {
            std::fs::write(PathBuf::from(directory).join(format!("{name}.png")), &png).unwrap();
        }
        png.len()
    }

    /// The entries of a browser log since the last call; the log `browser` is the console.
    pub async fn log(&self, kind: &str) -> Vec<String> {
        let entries = self.call("POST", "/se/log", &json!({ "type": kind })).await;
        entries.as_array().unwrap().iter().map(|entry| entry["message"].as_str().unwrap().to_owned()).collect()
    }

    /// Closes the browser.
    pub async fn quit(self) {
        self.call("DELETE", "", &Value::Null).await;
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // chromedriver closes its browsers on SIGTERM.
        let _ = Command::new("kill").arg(self.driver.id().to_string()).status();
        let _ = self.driver.wait();
    }
}
