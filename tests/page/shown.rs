//! What a person sees while builds come and go.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    browser::Browser,
    looks,
    support::{
        buildkitd::Buildkitd,
        child::Guarded,
        client::{Context, buildctl_build, run},
        eventually,
        proxy::Proxy,
        raw_client::RawClient,
        tools::tool,
    },
};

/// A key that would run a script if it were not escaped, and that turns the direction of what follows.
const HOSTILE: &str = "<img src=x onerror=\"document.title='taken'\">\u{202e}'&lt;</script>";

/// Builds that run until their guards are dropped.
struct Builds {
    context: Context,
    addr: String,
}

impl Builds {
    fn start(&self, key: &str) -> Guarded {
        let path = self.context.path().display();
        let locals = [format!("context={path}"), format!("dockerfile={path}")];
        let hint = format!("buildkit-lb-key={key}");
        let args = ["--addr", &self.addr, "build", "--frontend=dockerfile.v0", "--opt", &hint];
        let args =
            [&args[..], &["--local", &locals[0], "--local", &locals[1], "--no-cache"]].concat();
        Guarded::start(&tool("buildctl"), &args)
    }
}

/// Builds something that ends at once.
fn build(proxy: &Proxy, key: &str, steps: &str) {
    let context = Context::busybox(steps);
    let mut build = buildctl_build(&proxy.addr(), &context);
    run(build.args(["--opt", &format!("buildkit-lb-key={key}")]));
}

/// The running builds, once there are `count`.
fn running(proxy: &Proxy, count: usize) -> Vec<Value> {
    eventually("the builds run", Duration::from_secs(60), || {
        let builds = proxy.status()["builds"].as_array().expect("a list").clone();
        (builds.len() == count).then_some(builds)
    })
}

/// An expression: whether the table `id` has a row with `text`.
fn row(id: &str, text: &str) -> String {
    format!(
        "[...document.querySelectorAll('#{id} tbody tr')].some((row) => row.textContent.includes({}))",
        json!(text)
    )
}

#[test]
fn the_page_follows_real_builds_in_a_real_browser() {
    let mut fleet = ["builder-a", "builder-b"].map(Buildkitd::start);
    let args = ["--max-builds", "1", "--affinity-wait", "0s"];
    let proxy = Proxy::in_front_of(&fleet).policy("consistent-hash").args(&args).start();
    proxy.wait_ready(2, Duration::from_secs(60));
    for _ in 0..2 {
        build(&proxy, "shop/api", "RUN echo api > /api");
        build(&proxy, "shop/web", "RUN echo web > /web");
    }
    build(&proxy, "tools/lint", "RUN false");
    let page = format!("http://{}/", proxy.admin_socket());
    let browser = Browser::start();
    browser.open(&page);
    browser.wait("document.getElementById('live').dataset.state === 'live'");
    browser.wait(&row("recent", "tools/lint"));
    assert!(browser.text("#recent").contains("failed"), "{}", browser.text("#recent"));
    // A reload would forget this.
    browser.run("window.same = true");

    let builds = Builds { context: Context::busybox("RUN sleep 1000"), addr: proxy.addr() };
    let first = builds.start("shop/api");
    let listed = running(&proxy, 1);
    browser.wait(&row("running", "shop/api"));
    focus_stays(&browser);
    let second = builds.start("shop/web");
    running(&proxy, 2);
    let third = builds.start("shop/docs");
    browser.wait(&row("queue", "shop/docs"));
    assert!(
        browser.text("#queue tbody tr").starts_with('1'),
        "{}",
        browser.text("#queue tbody tr")
    );
    browser.wait("document.querySelector('#queue tbody').textContent.includes('slots are taken')");
    looks::check(&browser, &page, "page");

    let own = format!("{page}builds/{}", listed[0]["ref"].as_str().expect("a ref"));
    the_life_of_a_build(&browser, &own, first);
    browser.open(&page);
    browser.run("window.same = true");
    // The third build has got the slot.
    browser.wait(&format!("!({})", row("queue", "shop/docs")));
    browser.wait(&row("running", "shop/docs"));
    browser.wait("document.querySelector('#recent tbody tr').textContent.includes('cancelled')");
    drop((second, third));
    browser.wait("document.querySelector('#running .empty')");
    let hostile = builds.start(HOSTILE);
    a_hostile_key_stays_text(&browser);
    drop(hostile);
    a_hostile_ref_stays_text(&browser, &proxy);
    browser.open(&page);
    browser.run("window.same = true");

    fleet[1].kill();
    browser.wait("document.querySelector('#fleet .bad')?.textContent === 'unhealthy'");
    browser.wait("document.querySelector('#warnings')?.textContent.includes('builder-b')");
    assert_eq!(browser.run("return window.same"), true, "the page was loaded again");
    nothing_odd_was_logged(&browser, &page);
    without_events_it_asks(&browser, &page, &proxy, &builds);
    proxy.process.signal("KILL");
    browser.wait("document.getElementById('live').dataset.state === 'lost'");
}

/// The focus stays on a link while the row around it changes.
fn focus_stays(browser: &Browser) {
    browser.run("document.querySelector('#running tbody a').focus()");
    let elapsed = "[...document.querySelectorAll('#running td.number')].map((cell) => cell.textContent).join()";
    browser.run(&format!("window.elapsed = {elapsed}"));
    browser.wait(&format!("{elapsed} !== window.elapsed"));
    let focused = browser.run("return document.activeElement.closest('#running') !== null");
    assert_eq!(focused, true, "the focus is lost");
}

/// A build's own page shows its life, and its end without a reload.
fn the_life_of_a_build(browser: &Browser, url: &str, build: Guarded) {
    browser.open(url);
    browser.wait("document.getElementById('live').dataset.state === 'live'");
    let told = browser.text("main");
    for words in
        ["runs", "The build arrived.", "It was placed on builder-", "home of the key", "this build"]
    {
        assert!(told.contains(words), "{words} is not in {told}");
    }
    looks::check(browser, url, "build");
    browser.run("window.same = true");
    drop(build);
    browser.wait("document.querySelector('main').textContent.includes('It ended after')");
    assert_eq!(browser.run("return window.same"), true, "the page was loaded again");
    assert!(browser.text("main h2").contains("cancelled"), "{}", browser.text("main"));
}

fn a_hostile_key_stays_text(browser: &Browser) {
    browser.wait(&row("running", "<img src=x onerror="));
    assert_eq!(browser.run("return document.querySelectorAll('main img, main script').length"), 0);
    assert_eq!(browser.run("return document.title"), "buildkit-lb");
    let text = browser.text("#running tbody th");
    assert!(!text.contains('\u{202e}') && text.contains("\\u{202e}"), "{text}");
}

/// A ref that any client may choose leads to its own page, as text.
fn a_hostile_ref_stays_text(browser: &Browser, proxy: &Proxy) {
    let hostile = "<b id=taken>/../?\u{202e}#\"";
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let calls = runtime.block_on(async {
        let client = RawClient::connect(&proxy.socket()).await;
        [client.session("hostile").await, client.solve(hostile, "hostile").await]
    });
    browser.wait(&row("running", "<b id=taken>"));
    browser.run("document.querySelector('#running tbody a').click()");
    browser.wait("document.querySelector('h1')?.textContent.includes('<b id=taken>')");
    drop((calls, runtime));
    browser.wait("document.querySelector('main').textContent.includes('It ended after')");
    assert_eq!(browser.run("return document.getElementById('taken')"), Value::Null);
}

/// The console has nothing, and no request went elsewhere.
fn nothing_odd_was_logged(browser: &Browser, page: &str) {
    assert_eq!(browser.log("browser"), Vec::<Value>::new());
    let requests: Vec<_> = browser.log("performance").iter().filter_map(requested).collect();
    assert!(requests.len() > 10, "{requests:?}");
    for url in requests {
        assert!(url.starts_with(page) || url.starts_with("data:"), "{url}");
    }
}

/// The address of the request that a record of the performance log is about.
fn requested(record: &Value) -> Option<String> {
    let message: Value = serde_json::from_str(record["message"].as_str()?).ok()?;
    let sent = message["message"]["method"] == "Network.requestWillBeSent";
    sent.then(|| message["message"]["params"]["request"]["url"].as_str().map(str::to_owned))?
}

/// If the browser gets no events, the page asks by itself.
fn without_events_it_asks(browser: &Browser, page: &str, proxy: &Proxy, builds: &Builds) {
    browser.devtools("Network.enable", &json!({}));
    browser.devtools("Network.setBlockedURLs", &json!({"urls": ["*/events"]}));
    browser.open(page);
    browser.wait("document.getElementById('live').dataset.state === 'polling'");
    let build = builds.start("shop/polled");
    running(proxy, 1);
    browser.wait(&row("running", "shop/polled"));
    drop(build);
    browser.wait(&row("recent", "shop/polled"));
}
