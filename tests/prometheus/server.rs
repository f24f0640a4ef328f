//! A Prometheus that scrapes a proxy and evaluates the chart's alerts.

use std::{collections::BTreeSet, fs, process::Command, time::Duration};

use serde_json::Value;

use crate::{
    alerts::rules,
    support::{child::Guarded, eventually, free_port, proxy::Proxy, tools::tool},
};

/// How long a busy machine may take until a scrape has seen what has happened.
pub(crate) const WAIT: Duration = Duration::from_secs(60);

/// A Prometheus that scrapes one proxy as the chart's monitor configures it.
pub(crate) struct Prometheus {
    url: String,
    _process: Guarded,
    _directory: tempfile::TempDir,
}

impl Prometheus {
    /// Starts Prometheus, and waits until it has scraped the proxy.
    pub(crate) fn start(proxy: &Proxy) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
        let labels = "{namespace: buildkit, service: buildkit-lb-admin, pod: proxy-0}";
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
             rule_files: [rules.json]\n\
             scrape_configs: [{{job_name: lb, static_configs: \
             [{{targets: ['{}'], labels: {labels}}}]}}]\n",
            proxy.admin_socket()
        );
        fs::write(path("rules.json"), rules().to_string()).expect("written");
        fs::write(path("prometheus.yml"), config).expect("written");
        let url = format!("127.0.0.1:{}", free_port());
        let args = [
            format!("--config.file={}", path("prometheus.yml")),
            format!("--storage.tsdb.path={}", path("data")),
            format!("--web.listen-address={url}"),
        ];
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let process = Guarded::start_in(&tool("prometheus"), &args, &path(""));
        let started = Self { url, _process: process, _directory: directory };
        started.is("up{job=\"lb\"}", "1");
        started
    }

    /// The whole answer to a query.
    pub(crate) fn ask(&self, query: &str) -> Option<Value> {
        self.get("query", &["--data-urlencode", &format!("query={query}")])
    }

    /// Waits until the first value equals this one.
    pub(crate) fn is(&self, query: &str, value: &str) {
        eventually(query, WAIT, || {
            let answer = self.ask(query)?;
            let found = answer["data"]["result"][0]["value"][1].as_str()?;
            (found == value).then_some(())
        });
    }

    /// Waits until every alert has been evaluated without an error.
    pub(crate) fn evaluates(&self, alerts: &BTreeSet<String>) {
        eventually("all alerts are evaluated", WAIT, || {
            let answer = self.get("rules", &[])?;
            let rules = answer["data"]["groups"][0]["rules"].as_array()?.clone();
            let well = rules.iter().filter(|rule| rule["health"] == "ok");
            let well: BTreeSet<_> =
                well.filter_map(|rule| Some(rule["name"].as_str()?.to_owned())).collect();
            (well == *alerts).then_some(())
        });
    }

    /// The alerts whose condition holds, also those that have to hold longer before they fire.
    pub(crate) fn alerts(&self) -> BTreeSet<String> {
        let answer = self.get("alerts", &[]).expect("an answer");
        let alerts = answer["data"]["alerts"].as_array().expect("a list");
        let name = |alert: &Value| alert["labels"]["alertname"].as_str().map(str::to_owned);
        alerts.iter().filter_map(name).collect()
    }

    /// Waits until the condition of this alert holds.
    pub(crate) fn alert(&self, name: &str) {
        eventually(name, WAIT, || self.alerts().contains(name).then_some(()));
    }

    fn get(&self, what: &str, args: &[&str]) -> Option<Value> {
        let url = format!("http://{}/api/v1/{what}", self.url);
        let curl = Command::new(tool("curl")).args(["-sG", &url]).args(args).output();
        serde_json::from_slice(&curl.ok()?.stdout).ok()
    }
}
