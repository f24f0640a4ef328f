//! Tokens give a name to clients without a certificate.

use std::{fmt::Write as _, fs, path::PathBuf, time::Duration};

use ring::digest::{SHA256, digest};

use crate::support::{
    certificates::{Authority, Request},
    eventually,
    fake_daemon::FakeDaemon,
    proxy::{Builder, Proxy},
    raw_client::{Ended, RawClient},
};

const A: &str = "0f8a3e1c9b7d4652a1c0e9f8b7d6a543";
const B: &str = "77aa3e1c9b7d4652a1c0e9f8b7d6a500";

/// A line of the token file: the output of `sha256sum` for the token, and a name.
fn line(token: &str, name: &str) -> String {
    let hash = digest(&SHA256, token.as_bytes());
    let digits = hash.as_ref().iter().fold(String::new(), |mut digits, byte| {
        let _ = write!(digits, "{byte:02x}");
        digits
    });
    format!("{digits}  {name}\n")
}

/// A proxy that accepts tokens or certificates.
struct Fixture {
    daemon: FakeDaemon,
    proxy: Proxy,
    tokens: tempfile::NamedTempFile,
    client: PathBuf,
    _authority: Authority,
}

impl Fixture {
    async fn new(tls: bool) -> Self {
        let authority = Authority::new("of clients");
        let daemon = FakeDaemon::start("f").await;
        let tokens = tempfile::NamedTempFile::new().expect("a file");
        fs::write(tokens.path(), line(A, "api a") + &line(B, "api-b")).expect("written");
        let file = tokens.path().to_str().expect("UTF-8");
        let own = authority.directory("proxy", &Request::SERVER);
        let own = own.to_str().expect("UTF-8");
        let mut args = vec!["--client-token-file", file];
        if tls {
            args.extend(["--tls-dir", own, "--tls-client-auth", "optional"]);
        }
        let proxy = Builder::default().backend(&daemon.backend()).args(&args).start();
        proxy.wait_ready(1, Duration::from_secs(20));
        let client = authority.directory("client", &Request::CLIENT);
        Self { daemon, proxy, tokens, client, _authority: authority }
    }

    /// A client that shows no certificate.
    async fn anonymous(&self) -> RawClient {
        RawClient::connect_tls_anonymous(&self.proxy.socket(), &self.client).await
    }

    /// The name of the client of a build that has begun.
    fn identity(&self, build: &str) -> String {
        eventually("the build runs", Duration::from_secs(10), || {
            let builds = self.proxy.status()["builds"].clone();
            let mut builds = builds.as_array()?.iter();
            let build = builds.find(|fields| fields["ref"] == build)?;
            Some(build["identity"].as_str().unwrap_or("nobody").to_owned())
        })
    }
}

/// [`RawClient`] with a token.
fn bearer(client: &RawClient, token: &str) -> RawClient {
    client.with("authorization", &format!("Bearer {token}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_one_connection_are_those_of_their_tokens_clients() {
    let fixture = Fixture::new(true).await;
    // An HTTP/2 hop sends the calls of many clients like this.
    let hop = fixture.anonymous().await;
    let (a, b) = (bearer(&hop, A), bearer(&hop, B));
    let _solve_a = a.solve("of-a", "").await;
    assert_eq!(fixture.identity("of-a"), "api a");
    let _solve_b = b.solve("of-b", "").await;
    assert_eq!(fixture.identity("of-b"), "api-b");
    let _solve = hop.solve("of-nobody", "").await;
    assert_eq!(fixture.identity("of-nobody"), "nobody");
    let foreign = b.by_ref("Status", "of-a").await.ended().await;
    assert_eq!((foreign.code(), foreign.marker()), (Some(5), Some("unknown_build")), "{foreign:?}");
    let own = a.by_ref("Status", "of-a").await.answered().await.expect("headers");
    assert!(own.headers.get("buildkit-lb-error").is_none(), "{:?}", own.headers);
    // A token takes precedence over a certificate.
    let certified = RawClient::connect_tls(&fixture.proxy.socket(), &fixture.client).await;
    let _solve = certified.solve("of-client", "").await;
    assert_eq!(fixture.identity("of-client"), "client");
    let _solve = bearer(&certified, B).solve("of-b-too", "").await;
    assert_eq!(fixture.identity("of-b-too"), "api-b");
    for seen in fixture.daemon.seen("") {
        assert!(seen.headers.get("authorization").is_none(), "a daemon sees a token: {seen:?}");
    }
    let log = fixture.proxy.process.log();
    assert!(!log.contains(A) && !log.contains(B), "a token in the log");
}

fn refused(ended: &Ended, text: &str) {
    assert_eq!((ended.code(), ended.marker()), (Some(16), Some("unauthenticated")), "{ended:?}");
    assert!(ended.message().contains(text), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_not_in_the_file_and_one_without_tls_are_refused() {
    let (secured, plain) = (Fixture::new(true).await, Fixture::new(false).await);
    let client = secured.anonymous().await;
    assert_eq!(client.control("ListWorkers").await.ended().await.code(), Some(0));
    for (header, text) in [
        ("Bearer 00000000000000000000000000000000", "no client has the token"),
        (A, "not of the form"),
        ("Basic Zm9vOmJhcg==", "not of the form"),
        ("Bearer", "not of the form"),
    ] {
        let client = client.with("authorization", header);
        refused(&client.control("ListWorkers").await.ended().await, text);
        refused(&client.solve("r", "").await.ended().await, text);
    }
    let twice = bearer(&bearer(&client, A), B);
    refused(&twice.control("ListWorkers").await.ended().await, "several headers");
    let over_plain = RawClient::connect(&plain.proxy.socket()).await;
    let ended = bearer(&over_plain, A).control("ListWorkers").await.ended().await;
    refused(&ended, "over TLS only");
    assert_eq!(over_plain.control("ListWorkers").await.ended().await.code(), Some(0));
    for fixture in [&secured, &plain] {
        assert!(fixture.daemon.seen("Solve").is_empty(), "a refused build reaches no daemon");
        assert!(!fixture.proxy.process.log().contains(A), "a token in the log");
        let counted = fixture.proxy.metric("buildkit_lb_rejected_total", &["unauthenticated"]);
        assert!(counted > 0.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_taken_while_it_is_in_the_file() {
    let fixture = Fixture::new(true).await;
    let client = fixture.anonymous().await;
    let (a, b) = (bearer(&client, A), bearer(&client, B));
    assert_eq!(a.control("ListWorkers").await.ended().await.code(), Some(0));
    fs::write(fixture.tokens.path(), line(B, "api-b")).expect("written");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while a.control("ListWorkers").await.ended().await.code() != Some(16) {
        assert!(tokio::time::Instant::now() < deadline, "the token is still taken");
    }
    assert_eq!(b.control("ListWorkers").await.ended().await.code(), Some(0));
    let told = fixture.proxy.records("tokens reloaded");
    assert!(told.iter().any(|fields| fields["whose"] == "clients"), "{told:?}");
}
