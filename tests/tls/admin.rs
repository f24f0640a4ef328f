//! TLS on the admin port: who may change and read things with a certificate.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::support::{
    certificates::{Authority, Request, Validity},
    client::{run, text},
    eventually, free_port,
    proxy::{Builder, Proxy},
    tools::tool,
};

const TOKEN: &str = "0f8a3e1c9b7d4652a1c0e9f8b7d6a543";

/// A proxy whose admin port speaks TLS, and the certificates of its clients.
struct Fixture {
    authority: Authority,
    proxy: Proxy,
}

impl Fixture {
    /// A proxy for a daemon that does not run: nothing asks the daemon.
    fn new(args: &[&str]) -> Self {
        let authority = Authority::new("of the admin port");
        let own = authority.directory("proxy", &Request::SERVER);
        let own = own.to_str().expect("UTF-8");
        let daemon = format!("b=tcp://127.0.0.1:{}", free_port());
        let proxy = Builder::default().backend(&daemon).args(&["--admin-tls-dir", own]).args(args);
        Self { proxy: proxy.start(), authority }
    }

    /// The certificate of a client called `name`.
    fn client(&self, name: &str) -> PathBuf {
        self.authority.directory(name, &Request { name, ..Request::CLIENT })
    }

    /// Sends a request with curl, which trusts the authority and shows the certificate in `client`. Returns status and
    /// body, or the error that curl prints.
    fn ask(&self, client: Option<&Path>, method: &str, path: &str, args: &[&str]) -> (u16, String) {
        let trust = self.authority.directory("trust", &Request::CLIENT).join("ca.pem");
        let mut curl = Command::new(tool("curl"));
        curl.args(["--silent", "--show-error", "--max-time", "30", "--request", method]);
        curl.args(["--write-out", "\n%{http_code}"]).arg("--cacert").arg(trust).args(args);
        if let Some(client) = client {
            curl.arg("--cert").arg(client.join("cert.pem"));
            curl.arg("--key").arg(client.join("key.pem"));
        }
        let output = run(curl.arg(format!("https://{}{path}", self.proxy.admin_socket())));
        let answer = text(&output);
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let code = stdout.trim_end().rsplit('\n').next().and_then(|code| code.parse().ok());
        (code.unwrap_or_default(), answer)
    }

    /// The answer to a request that cordons the daemon.
    fn cordon(&self, client: Option<&Path>) -> (u16, String) {
        self.ask(client, "POST", "/backends/b/cordon", &[])
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listed_certificate_changes_things_and_everybody_reads() {
    let fixture = Fixture::new(&["--admin-client", "operator-*"]);
    for path in ["/livez", "/metrics", "/status.json", "/backends/b/builds"] {
        assert_eq!(fixture.ask(None, "GET", path, &[]).0, 200, "{path}");
    }
    let operator = fixture.client("operator-1");
    assert_eq!(fixture.cordon(Some(&operator)).0, 200);
    let uncordon = fixture.ask(Some(&operator), "DELETE", "/backends/b/cordon", &[]);
    assert_eq!(uncordon.0, 200, "{}", uncordon.1);
    let (code, told) = fixture.cordon(Some(&fixture.client("team-a")));
    assert!(code == 403 && told.contains("--admin-client"), "{told}");
    let (code, told) = fixture.cordon(None);
    assert!(code == 401 && told.contains("--admin-tls-dir"), "{told}");
    let (_code, metrics) = fixture.ask(None, "GET", "/metrics", &[]);
    for series in [
        "admin_requests_refused_total{reason=\"wrong_client\"} 1",
        "admin_requests_refused_total{reason=\"no_token\"} 1",
        "certificate_expiry_timestamp_seconds{pool=\"default\",side=\"admin\"}",
        "backend_state{pool=\"default\",backend=\"b\",state=\"cordoned\"} 0",
    ] {
        assert!(metrics.contains(series), "{series} is not in {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_not_good_gets_no_connection() {
    let fixture = Fixture::new(&["--admin-client", "*"]);
    let stranger = Authority::new("a stranger");
    let cases = [
        ("tls_unknown_ca", stranger.directory("operator", &Request::CLIENT)),
        (
            "tls_expired",
            fixture
                .authority
                .directory("expired", &Request { validity: Validity::Expired, ..Request::CLIENT }),
        ),
        ("tls_wrong_purpose", fixture.authority.directory("server", &Request::SERVER)),
    ];
    for (reason, directory) in cases {
        let (code, told) = fixture.cordon(Some(&directory));
        assert_eq!(code, 0, "{reason}: {told}");
        eventually(reason, Duration::from_secs(10), || {
            let told = fixture.proxy.records("TLS handshake failed on the admin port");
            told.iter().any(|fields| fields["reason"] == reason).then_some(())
        });
    }
    // A client without TLS is told that the port speaks TLS.
    let (code, told) = fixture.proxy.admin("GET", "/livez");
    assert!(code == 400 && told.contains("HTTP over TLS"), "{told}");
    assert_eq!(fixture.ask(None, "GET", "/livez", &[]).0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_that_is_restricted_takes_a_certificate_or_a_token_and_probes_neither() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), TOKEN).expect("written");
    let tokens = file.path().to_str().expect("UTF-8");
    let fixture = Fixture::new(&["--admin-restrict-reading", "--admin-token-file", tokens]);
    assert_eq!(fixture.ask(None, "GET", "/livez", &[]).0, 200);
    let (code, told) = fixture.ask(None, "GET", "/readyz", &[]);
    assert!(code == 200 || code == 503, "{told}");
    assert!(!told.contains("pool default"), "a probe is told one word: {told}");
    let scraper = fixture.client("scraper");
    for path in ["/metrics", "/status.json", "/backends/b/builds"] {
        let (code, told) = fixture.ask(None, "GET", path, &[]);
        assert!(code == 401 && told.contains("Authorization: Bearer"), "{path}: {told}");
        assert_eq!(fixture.ask(Some(&scraper), "GET", path, &[]).0, 200, "{path}");
        let bearer = format!("Authorization: Bearer {TOKEN}");
        assert_eq!(fixture.ask(None, "GET", path, &["--header", &bearer]).0, 200, "{path}");
        let wrong = ["--header", "Authorization: Bearer 00000000000000000000000000000000"];
        assert_eq!(fixture.ask(None, "GET", path, &wrong).0, 401, "{path}");
    }
    assert_eq!(fixture.cordon(Some(&scraper)).0, 403, "to read is not to change");
    assert_eq!(fixture.proxy.control("GET", "/metrics").0, 200, "the control listener is open");
    assert!(!fixture.proxy.process.log().contains(TOKEN), "a token in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn drain_backend_speaks_tls_to_the_admin_port() {
    let fixture = Fixture::new(&["--admin-client", "operator"]);
    let drain = |client: &Path, name: Option<&str>| {
        let mut drain = Command::new(env!("CARGO_BIN_EXE_buildkit-lb"));
        drain.args(["drain-backend", "b", "--timeout", "20s"]);
        drain.args(["--proxy", fixture.proxy.admin_socket()]).arg("--proxy-tls-dir").arg(client);
        drain.args(name.iter().flat_map(|name| ["--proxy-tls-server-name", name]));
        run(&mut drain)
    };
    let operator = fixture.client("operator");
    let output = drain(&operator, None);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let output = drain(&operator, Some("proxy.test."));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let output = drain(&operator, Some("other.test"));
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("TLS handshake"), "{}", text(&output));
    let output = drain(&fixture.client("team-a"), None);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("not listed by --admin-client"), "{}", text(&output));
}
