//! Nobody can use what belongs to another client: two clients with certificates make every call that contains an id.

#![allow(clippy::disallowed_methods, reason = "a test's tasks end with its runtime")]

mod support;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use buildkit_lb::wire::{
    self,
    control::{Attr, BuildHistoryRequest, RefRequest, SolveRequest},
};
use bytes::Bytes;
use futures_util::{
    FutureExt as _,
    future::{BoxFuture, join_all},
};
use regex::Regex;
use support::{
    buildkitd::Buildkitd,
    certificates::{Authority, Request},
    client::{Buildx, Context, build, buildctl_tls, run, succeed, text},
    eventually,
    fake_daemon::FakeDaemon,
    proxy::{Builder, Proxy},
    raw_client::{Ended, RawClient},
};
use tokio::{runtime::Handle, task::block_in_place};

const CONTROL: &str = "/moby.buildkit.v1.Control/";

/// The methods of LLBBridge. A newer client may have more.
const BRIDGE: [&str; 18] = [
    "Evaluate",
    "ExecProcess",
    "Inputs",
    "NewContainer",
    "Ping",
    "ReadDir",
    "ReadDirContainer",
    "ReadFile",
    "ReadFileContainer",
    "ReleaseContainer",
    "ResolveImageConfig",
    "ResolveSourceMeta",
    "Return",
    "Solve",
    "StatFile",
    "StatFileContainer",
    "Warn",
    "FromTheFuture",
];

/// The id of the owner's build, session and blob.
const OWN: &str = "x7h2k9-of-the-owner";

/// Clients `a` and `b` of one authority, each with a directory for its certificate.
struct Clients {
    a: PathBuf,
    b: PathBuf,
    _authority: Authority,
}

/// A proxy that demands certificates, and two clients.
fn start(builder: Builder) -> (Proxy, Clients) {
    let authority = Authority::new("of clients");
    let own = authority.directory("proxy", &Request::SERVER);
    let client = |name| authority.directory(name, &Request { name, ..Request::CLIENT });
    let (a, b) = (client("a"), client("b"));
    let proxy = builder.args(&["--tls-dir", own.to_str().expect("UTF-8")]).start();
    (proxy, Clients { a, b, _authority: authority })
}

/// A call that contains an id: its name, and how it ends for a client that makes it with the given id.
type Case = (String, Box<dyn Fn(RawClient, &'static str) -> BoxFuture<'static, Ended>>);

fn case<F>(name: &str, call: impl Fn(RawClient, &'static str) -> F + 'static) -> Case
where
    F: Future<Output = Ended> + Send + 'static,
{
    (name.to_owned(), Box::new(move |client, id| call(client, id).boxed()))
}

fn attr(key: &str, value: &str) -> Attr {
    Attr { key: key.to_owned().into(), value: value.to_owned().into() }
}

/// A Solve with a build and a session of its own that also names the session `id` in some way.
fn naming(id: &'static str, way: &str) -> SolveRequest {
    let mut request = SolveRequest {
        r#ref: format!("own-{way}-{id}").into(),
        session: "".into(),
        ..Default::default()
    };
    match way {
        "session" => request.session = id.into(),
        "local-sessionid" => request.frontend_attrs = vec![attr("local-sessionid:context", id)],
        _ => request.source_policy_session = id.into(),
    }
    request
}

async fn ask(client: RawClient, path: String, headers: Vec<(&str, &str)>, message: Bytes) -> Ended {
    client.send(&path, &headers, message).await.ended().await
}

/// The answer to a question for the blob `digest`.
async fn blob(client: RawClient, digest: &str) -> Ended {
    let message = wire::encode(&RefRequest { r#ref: digest.to_owned().into() });
    ask(client, "/containerd.services.content.v1.Content/Info".to_owned(), vec![], message).await
}

/// Every call that may contain the id of somebody else's build, session or blob.
fn cases() -> Vec<Case> {
    let mut cases = vec![
        case("Status", |client, id| async move { client.by_ref("Status", id).await.ended().await }),
        case("UpdateBuildHistory", |client, id| async move {
            client.by_ref("UpdateBuildHistory", id).await.ended().await
        }),
        case("ListenBuildHistory", |client, id| {
            let request =
                BuildHistoryRequest { r#ref: id.into(), early_exit: true, ..Default::default() };
            ask(client, format!("{CONTROL}ListenBuildHistory"), vec![], wire::encode(&request))
        }),
        case("FromTheFuture", |client, id| {
            let headers = vec![("buildkit-controlapi-buildid", id)];
            ask(client, format!("{CONTROL}FromTheFuture"), headers, wire::frame(&[]))
        }),
    ];
    for method in ["Info", "Read"] {
        cases.push(case(&format!("Content {method}"), move |client, id| {
            let message = wire::encode(&RefRequest { r#ref: id.into() });
            ask(
                client,
                format!("/containerd.services.content.v1.Content/{method}"),
                vec![],
                message,
            )
        }));
    }
    for method in BRIDGE {
        let result = wire::frame(&[1 << 3 | 2, 0]);
        cases.push(case(method, move |client, id| {
            let headers = vec![("buildkit-controlapi-buildid", id)];
            ask(
                client,
                format!("/moby.buildkit.v1.frontend.LLBBridge/{method}"),
                headers,
                result.clone(),
            )
        }));
    }
    for way in ["session", "local-sessionid", "source-policy"] {
        cases.push(case(&format!("Solve naming it by {way}"), move |client, id| {
            ask(client, format!("{CONTROL}Solve"), vec![], wire::encode(&naming(id, way)))
        }));
    }
    cases
}

/// Code, text, marker and messages of an answer.
type Told = (Option<i32>, String, Option<String>, Bytes);

/// All that a client is told, without the id for which it asked.
fn told(ended: &Ended, id: &str) -> Told {
    let message = ended.message();
    // The text has a hash in place of the session's id.
    let message = match message.strip_prefix("no active session for ") {
        Some(_) => "no active session".to_owned(),
        None => message.replace(id, "ID"),
    };
    (ended.code(), message, ended.marker().map(str::to_owned), ended.body.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_anothers_is_answered_as_what_is_not_there() {
    let daemon = FakeDaemon::start("f").await;
    let (proxy, clients) = start(Builder::default().backend(&daemon.backend()));
    let owner = RawClient::connect_tls(&proxy.socket(), &clients.a).await;
    let _session = owner.session(OWN).await;
    let _solve = owner.solve(OWN, OWN).await;
    eventually("the build runs", Duration::from_secs(10), || {
        (!daemon.seen("Solve").is_empty() && !daemon.seen("Session").is_empty()).then_some(())
    });
    let (cases, socket) = (cases(), proxy.socket());
    // Calls of both kinds run at the same time, so that the machine is equally busy for both.
    let (foreign, unknown) = tokio::join!(
        join_all(cases.iter().map(|case| outcome(case, &socket, &clients.b, OWN))),
        join_all(cases.iter().map(|case| outcome(case, &socket, &clients.b, "unknown"))),
    );
    for ((name, foreign, took), (_, unknown, as_long_as)) in foreign.iter().zip(&unknown) {
        assert_eq!(foreign, unknown, "{name}");
        let (shorter, longer) = (took.min(as_long_as), took.max(as_long_as));
        assert!(*longer < 2 * *shorter + Duration::from_secs(1), "{name}: {took:?} {as_long_as:?}");
    }
    // None of the other client's calls reached the daemon, which knows no clients, only ids.
    let reached = daemon.seen("").into_iter().filter(|seen| seen.id() == OWN).count();
    assert_eq!(reached, 2, "{:?}", daemon.seen(""));
    // The owner's calls succeed. The proxy knows a blob's owner once the owner has asked for the record. Calls that
    // last as long as a build are left out, too.
    let others = ["Solve", "Status", "ExecProcess", "Content"];
    for (name, call) in
        cases.iter().filter(|(name, _)| !others.iter().any(|other| name.contains(other)))
    {
        let ended = call(owner.clone(), OWN).await;
        assert!(ended.marker().is_none(), "{name}: {ended:?}");
    }
}

/// The name of each case, the answer to the client of `directory`, and how long the answer took.
async fn outcome(
    (name, call): &Case,
    socket: &str,
    directory: &Path,
    id: &'static str,
) -> (String, Told, Duration) {
    let client = RawClient::connect_tls(socket, directory).await;
    let began = Instant::now();
    let ended = call(client, id).await;
    (name.clone(), told(&ended, id), began.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_with_anothers_uuid_is_another_session_in_the_daemon() {
    let daemon = FakeDaemon::start("f").await;
    let (proxy, clients) = start(Builder::default().backend(&daemon.backend()));
    let [a, b] = [&clients.a, &clients.b];
    let owner = RawClient::connect_tls(&proxy.socket(), a).await;
    let _session = owner.session("s").await;
    let _solve = owner.solve("r", "s").await;
    eventually("the session is open", Duration::from_secs(10), || {
        (daemon.seen("Session").len() == 1).then_some(())
    });
    let other = RawClient::connect_tls(&proxy.socket(), b).await;
    let _other =
        other.session("s").await.answered().await.expect("a session, as any that nobody names");
    // The proxy answers a Session that waits and has not reached a daemon yet.
    let ids: Vec<_> = eventually("it comes to the daemon", Duration::from_secs(20), || {
        let seen = daemon.seen("Session");
        (seen.len() == 2).then(|| seen.iter().map(support::fake_daemon::Seen::id).collect())
    });
    assert!(ids[0] == "s" && ids[1] != "s", "{ids:?}");
    // A build with the ref of the other client's build is refused.
    let ended = other.solve("r", "").await.ended().await;
    assert_eq!((ended.code(), ended.marker()), (Some(6), Some("ref_taken")), "{ended:?}");
}

fn records(proxy: &Proxy, client: &Path) -> String {
    text(&run(buildctl_tls(&proxy.addr(), client).args(["debug", "histories"])))
}

fn control(proxy: &Proxy, client: &Path, args: &[&str]) -> std::process::Output {
    run(buildctl_tls(&proxy.addr(), client).args(args))
}

#[tokio::test(flavor = "multi_thread")]
async fn records_and_blobs_of_real_builds_are_their_owners() {
    let daemon = Buildkitd::start("only");
    let (proxy, clients) = start(Proxy::in_front_of([&daemon]));
    proxy.wait_ready(1, Duration::from_secs(10));
    let context = Context::busybox("RUN echo of-a");
    succeed(&mut build(buildctl_tls(&proxy.addr(), &clients.a), &context));
    let ended = eventually("the build's record", Duration::from_secs(5), || {
        proxy.records("build ended").into_iter().next()
    });
    assert_eq!(
        (&ended["identity"], &ended["client"]),
        (&"a".into(), &"127.0.0.1".into()),
        "{ended}"
    );
    let build = ended["ref"].as_str().expect("a ref");
    assert!(records(&proxy, &clients.a).contains(build));
    assert!(!records(&proxy, &clients.b).contains(build), "{}", records(&proxy, &clients.b));
    // The blob of the trace comes a moment after the build.
    eventually("the build's trace", Duration::from_secs(20), || {
        let trace = control(&proxy, &clients.a, &["debug", "logs", "--trace", build]);
        trace.status.success().then_some(())
    });
    for args in [
        &["debug", "ctl", "--pin", build][..],
        &["debug", "ctl", "--delete", build],
        &["debug", "logs", build],
    ] {
        let refused = control(&proxy, &clients.b, args);
        assert!(!refused.status.success(), "{args:?}: {}", text(&refused));
        let unknown: Vec<_> =
            args.iter().map(|arg| if *arg == build { "unknown" } else { arg }).collect();
        let unknown = control(&proxy, &clients.b, &unknown);
        assert_eq!(text(&refused).replace(build, "unknown"), text(&unknown), "{args:?}");
    }
    assert!(records(&proxy, &clients.a).contains(build), "nothing has been deleted");
    let deleted = control(&proxy, &clients.a, &["debug", "ctl", "--delete", build]);
    assert!(deleted.status.success(), "{}", text(&deleted));
    assert!(!records(&proxy, &clients.a).contains(build));
}

/// The events of the build records that a client lists, at most `limit` events.
async fn listed(client: &RawClient, limit: i32) -> Vec<Bytes> {
    let request = BuildHistoryRequest { early_exit: true, limit, ..Default::default() };
    let path = format!("{CONTROL}ListenBuildHistory");
    let mut answer = client.send(&path, &[], wire::encode(&request)).await.ended().await.body;
    let mut events = Vec::new();
    while !answer.is_empty() {
        let head = answer.split_to(5);
        let len = u32::from_be_bytes(head[1..].try_into().expect("four bytes"));
        events.push(answer.split_to(len as usize));
    }
    events
}

/// The refs in the events, of the builds that are named here.
fn refs<'a>(events: &[Bytes], builds: &'a [String]) -> Vec<&'a str> {
    let has =
        |event: &Bytes, build: &str| event.windows(build.len()).any(|at| at == build.as_bytes());
    let named = |event| builds.iter().find(|build| has(event, build)).map(String::as_str);
    events.iter().filter_map(named).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_counts_the_records_that_the_client_may_see_and_a_blob_is_its_owners() {
    let daemon = Buildkitd::start("only");
    let (proxy, clients) = start(Proxy::in_front_of([&daemon]));
    proxy.wait_ready(1, Duration::from_secs(10));
    // The builds of `b` are the newest, so a limit takes them first.
    for (client, step) in
        [(&clients.a, "first"), (&clients.a, "second"), (&clients.b, "third"), (&clients.b, "last")]
    {
        let context = Context::busybox(&format!("RUN echo {step}"));
        succeed(&mut build(buildctl_tls(&proxy.addr(), client), &context));
    }
    let builds: Vec<_> = eventually("all records", Duration::from_secs(10), || {
        let ended = proxy.records("build ended");
        let names = ended.iter().map(|record| record["ref"].as_str().map(str::to_owned));
        (ended.len() == 4).then(|| names.collect::<Option<_>>().expect("refs"))
    });
    let a = RawClient::connect_tls(&proxy.socket(), &clients.a).await;
    let b = RawClient::connect_tls(&proxy.socket(), &clients.b).await;
    let own = refs(&listed(&a, 0).await, &builds).len();
    assert_eq!(own, 2, "all that are its own");
    assert_eq!(refs(&listed(&a, 1).await, &builds), [&builds[1]], "the newest of its own");
    assert_eq!(refs(&listed(&b, 1).await, &builds), [&builds[3]]);
    // The records contain the digests of the blobs.
    let digest = Regex::new("sha256:[0-9a-f]{64}").expect("valid");
    let record = eventually("a record with a blob", Duration::from_secs(20), || {
        let events = block_in_place(|| Handle::current().block_on(listed(&a, 1)));
        events
            .into_iter()
            .map(|event| String::from_utf8_lossy(&event).into_owned())
            .find(|event| digest.is_match(event))
    });
    let digests: Vec<_> =
        digest.find_iter(&record).map(|found| found.as_str().to_owned()).collect();
    let mut found = 0;
    for digest in digests {
        let unknown = digest.replace(&digest[7..20], "0000000000000");
        let (refused, nothing) = (blob(b.clone(), &digest).await, blob(b.clone(), &unknown).await);
        assert_eq!(told(&refused, &digest), told(&nothing, &unknown), "{digest}");
        found += usize::from(blob(a.clone(), &digest).await.code() == Some(0));
    }
    assert!(found > 0, "the owner gets none of its blobs");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_manifests_of_an_image_for_two_platforms_are_its_owners() {
    let daemon = Buildkitd::start("only");
    let (proxy, clients) = start(Proxy::in_front_of([&daemon]));
    proxy.wait_ready(1, Duration::from_secs(10));
    let context = Context::new("FROM scratch\nCOPY busybox /\n");
    let owner = Buildx::with_tls(&proxy.addr(), &clients.a);
    let platforms = "--platform=linux/amd64,linux/arm64";
    let output = "--output=type=image,name=example.test/app,push=false";
    succeed(owner.command(&["build", platforms, output]).arg(context.path()));
    let attachment = |buildx: &Buildx, args: &[&str]| {
        let words = ["history", "inspect", "attachment"];
        run(buildx.command(&words).args(args))
    };
    let manifest = "application/vnd.oci.image.manifest.v1+json";
    // buildx finds the manifests only in the index.
    let found = eventually("the record", Duration::from_secs(60), || {
        let found = attachment(&owner, &["--type", manifest, "^0"]);
        found.status.success().then_some(found)
    });
    // What stands before the attachments comes from the client's own files in part.
    let listed = |buildx: &Buildx| {
        let record = succeed(&mut buildx.command(&["history", "inspect", "^0"]));
        record.split_once("Attachments:").expect("attachments").1.to_owned()
    };
    let direct = Buildx::new(&daemon.addr());
    assert_eq!(found.stdout, attachment(&direct, &["--type", manifest, "^0"]).stdout);
    assert_eq!(listed(&owner), listed(&direct));
    let digest = Regex::new("sha256:[0-9a-f]{64}").expect("valid");
    let indexes = attachment(&owner, &["--type", "index", "^0"]);
    let named = text(&indexes);
    let named: Vec<_> = digest.find_iter(&named).map(|found| found.as_str()).collect();
    assert!(named.len() >= 2, "{}", text(&indexes));
    // The other client has listed its own record, and knows the digests.
    let other = Buildx::with_tls(&proxy.addr(), &clients.b);
    let own = Context::busybox("RUN echo another");
    succeed(other.command(&["build", "--output=type=cacheonly"]).arg(own.path()));
    let client = RawClient::connect_tls(&proxy.socket(), &clients.b).await;
    succeed(&mut other.command(&["history", "ls"]));
    for digest in named {
        let unknown = digest.replace(&digest[7..20], "0000000000000");
        let (refused, nothing) =
            (blob(client.clone(), digest).await, blob(client.clone(), &unknown).await);
        assert_eq!(told(&refused, digest), told(&nothing, &unknown), "{digest}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ca_of_one_team_gives_no_name_of_another() {
    let daemon = FakeDaemon::start("f").await;
    let (a, b) = (Authority::new("of team a"), Authority::new("of team b"));
    let own = a.directory("proxy", &Request::SERVER);
    let certificates = tempfile::tempdir().expect("a directory");
    let write = |name: &str, pem: &str| {
        let path = certificates.path().join(name);
        std::fs::write(&path, pem).expect("written");
        path.display().to_string()
    };
    let (of_a, of_b) = (write("a.crt", a.pem()), write("b.crt", b.pem()));
    let both = write("both.crt", &format!("{}{}", a.pem(), b.pem()));
    let rule = |team: &str, ca: &str| {
        format!("[[identity]]\nfrom = 'common-name'\nregex = '{team}-.*'\nca = '{ca}'\n")
    };
    let file = ["listen = 'tcp://127.0.0.1:0'\n", &rule("a", &of_a), &rule("b", &of_b)].concat();
    let own = own.to_str().expect("UTF-8");
    let proxy = Builder::default()
        .backend(&daemon.backend())
        .file(&file)
        .args(&["--tls-dir", own, "--tls-ca", &both])
        .start();
    let client = |authority: &Authority, name| {
        let directory = authority.directory(name, &Request { name, ..Request::CLIENT });
        // The first authority has signed the proxy's own certificate.
        std::fs::write(directory.join("ca.pem"), a.pem()).expect("written");
        control(&proxy, &directory, &["debug", "workers"])
    };
    for (authority, name, good) in
        [(&a, "a-1", true), (&b, "b-1", true), (&a, "b-1", false), (&b, "a-1", false)]
    {
        let output = client(authority, name);
        assert_eq!(output.status.success(), good, "{name}: {}", text(&output));
    }
    let refused = proxy.metric("buildkit_lb_connection_errors_total", &["tls_no_name"]);
    assert!(refused >= 2.0, "{refused}");
    // The CA file is read again when it changes, like the certificates.
    std::fs::write(&of_b, a.pem()).expect("written");
    eventually("the other CA is in force", Duration::from_secs(30), || {
        client(&a, "b-1").status.success().then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_names_nobody_is_refused_and_the_log_says_why() {
    let daemon = FakeDaemon::start("f").await;
    let file = "listen = 'tcp://127.0.0.1:0'\n[[identity]]\nfrom = 'email'\n";
    let (proxy, clients) = start(Builder::default().backend(&daemon.backend()).file(file));
    let refused = control(&proxy, &clients.a, &["debug", "workers"]);
    assert!(!refused.status.success(), "{}", text(&refused));
    let told = eventually("it is told", Duration::from_secs(10), || {
        proxy.records("TLS handshake failed").into_iter().next()
    });
    assert_eq!(told["reason"], "tls_no_name", "{told}");
    assert!(
        told["error"].as_str().expect("a text").contains("no email that a rule takes"),
        "{told}"
    );
}
