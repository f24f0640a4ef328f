//! A real browser: headless Chromium, driven by WebDriver.

use std::{fmt, fs, time::Duration};

use fantoccini::{Client, ClientBuilder, wd::WebDriverCompatibleCommand};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use url::{ParseError, Url};

use crate::support::{
    child::Guarded,
    eventually,
    tools::{axe, tool},
};

/// How long anything may take that the browser does.
const LIMIT: Duration = Duration::from_secs(60);

/// A browser with one window. It knows no host but this machine.
pub(crate) struct Browser {
    client: Client,
    runtime: Runtime,
    _driver: Guarded,
}

impl fmt::Debug for Browser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Browser").finish_non_exhaustive()
    }
}

impl Browser {
    /// Starts the browser and waits until it takes commands.
    pub(crate) fn start() -> Self {
        // The driver listens on loopback only, on a port of its choice.
        let driver = Guarded::start(&tool("chromedriver"), &["--port=0"]);
        let port = eventually("the driver listens", LIMIT, || {
            let log = driver.log();
            let port = log.split("successfully on port ").nth(1)?.split('.').next()?;
            port.parse::<u16>().ok()
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let mut builder = ClientBuilder::new(HttpConnector::new());
        builder.capabilities(capabilities().as_object().expect("an object").clone());
        let driver_url = format!("http://127.0.0.1:{port}");
        let client = runtime.block_on(builder.connect(&driver_url)).expect("a browser");
        Self { client, runtime, _driver: driver }
    }

    /// Opens a page and waits until it is loaded.
    pub(crate) fn open(&self, url: &str) {
        self.runtime.block_on(self.client.goto(url)).expect("the page");
    }

    /// What the body of a function returns that runs in the page.
    pub(crate) fn run(&self, script: &str) -> Value {
        self.runtime.block_on(self.client.execute(script, Vec::new())).expect("a script")
    }

    /// Waits until `expression` is true in the page.
    pub(crate) fn wait(&self, expression: &str) {
        let script = format!("return Boolean({expression})");
        eventually(expression, LIMIT, || (self.run(&script) == json!(true)).then_some(()));
    }

    /// The text of the first element that `selector` finds; empty if there is none.
    pub(crate) fn text(&self, selector: &str) -> String {
        let script = format!("return document.querySelector({selector:?})?.textContent ?? ''");
        self.run(&script).as_str().expect("text").to_owned()
    }

    /// Sends a command of the Chrome DevTools Protocol.
    pub(crate) fn devtools(&self, command: &str, parameters: &Value) -> Value {
        let body = json!({"cmd": command, "params": parameters});
        self.extension("goog/cdp/execute", body)
    }

    /// A PNG picture of what the window shows.
    pub(crate) fn picture(&self) -> Vec<u8> {
        self.runtime.block_on(self.client.screenshot()).expect("a picture")
    }

    /// What the browser has logged since the last call: `browser` is the console, `performance` the requests.
    pub(crate) fn log(&self, kind: &str) -> Vec<Value> {
        let log = self.extension("se/log", json!({"type": kind}));
        log.as_array().expect("a list").clone()
    }

    /// The violations that axe-core finds in the page, each with its elements.
    pub(crate) fn violations(&self) -> Vec<Value> {
        let axe = fs::read_to_string(axe()).expect("a script");
        self.run(&axe);
        let check = "const done = arguments[0]; \
                     axe.run().then((found) => done(found.violations), (error) => done([String(error)]))";
        let checking = self.client.execute_async(check, Vec::new());
        let found = self.runtime.block_on(checking).expect("axe-core");
        found.as_array().expect("a list").clone()
    }

    fn extension(&self, path: &'static str, body: Value) -> Value {
        let command = Extension { path, body };
        self.runtime.block_on(self.client.issue_cmd(command)).expect(path)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // A browser that does not answer ends together with its driver.
        let closing = self.client.clone().close();
        let _ = self.runtime.block_on(async { tokio::time::timeout(LIMIT, closing).await });
    }
}

fn capabilities() -> Value {
    json!({
        "browserName": "chrome",
        "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        "goog:chromeOptions": {
            "binary": tool("chromium"),
            "args": [
                "--headless=new",
                // The sandbox does not work as root, and only our own pages are opened.
                "--no-sandbox",
                // The browser then ends when its driver is killed.
                "--remote-debugging-pipe",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-background-networking",
                "--disable-component-update",
                "--no-first-run",
                "--hide-scrollbars",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            ],
        },
        "timeouts": {"script": 60_000, "pageLoad": 60_000},
    })
}

/// A command of Chromium's driver beyond WebDriver.
#[derive(Debug)]
struct Extension {
    path: &'static str,
    body: Value,
}

impl WebDriverCompatibleCommand for Extension {
    fn endpoint(&self, base: &Url, session: Option<&str>) -> Result<Url, ParseError> {
        base.join(&format!("session/{}/{}", session.unwrap_or_default(), self.path))
    }

    fn method_and_body(&self, _url: &Url) -> (http::Method, Option<String>) {
        (http::Method::POST, Some(self.body.to_string()))
    }
}
