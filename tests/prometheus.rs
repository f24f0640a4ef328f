//! A real Prometheus scrapes the proxy and understands every metric.

mod support;

use std::{path::Path, process::Command, time::Duration};

use serde_json::Value;
use support::{
    buildkitd::Buildkitd,
    child::Guarded,
    client::{Context, buildctl_build, succeed},
    eventually, free_port,
    proxy::Proxy,
};

#[test]
fn prometheus_scrapes_the_metrics_of_a_build() {
    let fleet = Buildkitd::fleet(1);
    let proxy = Proxy::in_front_of(&fleet).start();
    succeed(&mut buildctl_build(&proxy.addr(), &Context::busybox("RUN echo scraped")));

    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    let config = format!(
        "global: {{scrape_interval: 1s}}\n\
         scrape_configs: [{{job_name: lb, static_configs: [{{targets: ['{}']}}]}}]\n",
        proxy.admin_socket()
    );
    std::fs::write(path("prometheus.yml"), config).expect("written");
    let port = free_port();
    let args = [
        format!("--config.file={}", path("prometheus.yml")),
        format!("--storage.tsdb.path={}", path("data")),
        format!("--web.listen-address=127.0.0.1:{port}"),
    ];
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let _prometheus = Guarded::start_in(Path::new("/usr/bin/prometheus"), &args, &path(""));

    let query = |query: &str| -> Option<Value> {
        let url = format!("http://127.0.0.1:{port}/api/v1/query");
        let query = format!("query={query}");
        let curl = Command::new("curl").args(["-sfG", &url, "--data-urlencode", &query]).output();
        let answer: Value = serde_json::from_slice(&curl.ok()?.stdout).ok()?;
        answer["data"]["result"][0]["value"][1].as_str().map(Into::into)
    };
    let is = |text: &str, value: &str| {
        eventually(text, Duration::from_secs(30), || query(text).filter(|found| found == value));
    };
    is("up{job=\"lb\"}", "1");
    is("sum(buildkit_lb_builds_total{grpc_code=\"OK\",backend=\"d0\"})", "1");
    is("sum(buildkit_lb_build_duration_seconds_count)", "1");
    is("count(buildkit_lb_backend_state == 1)", "1");
    let version = env!("CARGO_PKG_VERSION");
    is(&format!("buildkit_lb_build_info{{version=\"{version}\"}}"), "1");
}
