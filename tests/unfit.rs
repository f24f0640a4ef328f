//! The proxy avoids a daemon that fails builds for reasons of its own, and no client can bring that about for others.

mod support;

use std::{path::Path, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use support::{
    buildkitd::Buildkitd,
    certificates::{Authority, Request},
    client::{Context, buildctl_build, run, succeed, text},
    eventually,
    fake_daemon::{FakeDaemon, trailers},
    proxy::{Builder, Proxy},
    raw_client::RawClient,
};
use tonic::Code;

/// A build of a project of its own.
fn project(context: &Context, addr: &str, name: &str) -> std::process::Command {
    let mut build = buildctl_build(addr, context);
    build.args(["--opt", &format!("build-arg:PROJECT={name}")]);
    build.args(["--output", &format!("type=image,name={name}")]);
    build
}

fn state(proxy: &Proxy, backend: &str) -> String {
    let status = proxy.status();
    let mut backends = status["backends"].as_array().expect("a list").iter();
    let own = backends.find(|own| own["name"] == backend).expect("there");
    own["state"].as_str().expect("a word").to_owned()
}

#[test]
fn a_daemon_with_a_full_disk_fails_few_builds_and_comes_back_when_it_is_told_to() {
    let full = Buildkitd::start_small("full");
    let mut fleet = Buildkitd::fleet(2);
    fleet.push(full);
    let context = Context::busybox("ARG PROJECT\nRUN echo $PROJECT > /built");
    let proxy = Proxy::in_front_of(&fleet).policy("random").args(&["--probation", "1h"]).start();
    proxy.wait_ready(3, Duration::from_secs(20));
    let filler = fleet[2].fill();
    let mut failed = 0;
    for number in 0.. {
        if state(&proxy, "full") == "degraded" {
            break;
        }
        let output = run(&mut project(&context, &proxy.addr(), &format!("p{number}")));
        if !output.status.success() {
            assert!(text(&output).contains("no space left on device"), "{}", text(&output));
            failed += 1;
        }
        assert!(failed <= 3, "it is known by then");
    }
    assert_eq!(failed, 3);
    for number in 0..9 {
        succeed(&mut project(&context, &proxy.addr(), &format!("q{number}")));
    }

    assert_eq!(proxy.metric("buildkit_lb_backend_degraded_total", &["backend=\"full\""]), 1.0);
    let record = &proxy.records("backend degraded")[0];
    assert_eq!(record["backend"], "full");
    let status = proxy.status();
    let told = status["backends"].as_array().expect("a list").iter().find(|b| b["name"] == "full");
    let told = told.expect("there");
    assert_eq!(told["cause"], record["cause"]);
    assert!(told["probation_seconds"].as_u64().is_some_and(|left| (1..=3600).contains(&left)));
    assert_eq!(proxy.admin("GET", "/readyz").0, 200);

    // The daemon's disk is cleaned up, and an operator does not want to wait.
    std::fs::remove_file(filler).expect("removed");
    let (code, told) = proxy.control("DELETE", "/backends/full/cordon");
    assert_eq!((code, state(&proxy, "full").as_str()), (200, "ready"), "{told}");
    eventually("it builds again", Duration::from_secs(120), || {
        succeed(&mut project(&context, &proxy.addr(), "r"));
        let labels = ["backend=\"full\"", "grpc_code=\"OK\""];
        (proxy.metric("buildkit_lb_builds_total", &labels) > 0.0).then_some(())
    });
}

#[test]
fn projects_that_fail_their_own_builds_degrade_nobody() {
    let fleet = Buildkitd::fleet(2);
    let context = Context::busybox("ARG PROJECT\nRUN echo $PROJECT; exit 3");
    let proxy = Proxy::in_front_of(&fleet).start();
    proxy.wait_ready(2, Duration::from_secs(20));
    for number in 0..8 {
        let output = run(&mut project(&context, &proxy.addr(), &format!("p{number}")));
        assert!(text(&output).contains("exit code: 3"), "{}", text(&output));
    }
    assert_eq!(proxy.metric("buildkit_lb_backend_degraded_total", &[]), 0.0);
    proxy.wait_ready(2, Duration::from_secs(1));
}

/// A client with an address of its own that decides how its builds end.
struct Attacker {
    client: RawClient,
    builds: u32,
}

impl Attacker {
    async fn connect(proxy: &Proxy) -> Self {
        let client = RawClient::connect_from("127.0.0.9", &proxy.socket()).await;
        Self { client, builds: 0 }
    }

    /// Builds the project `key`; the build ends with `code`. Returns the build's backend.
    async fn build(&mut self, proxy: &Proxy, key: &str, code: Code) -> String {
        self.builds += 1;
        let build = format!("attack-{}", self.builds);
        let attrs = [("buildkit-lb-key", key)];
        let solve = self.client.solve_with(&build, &format!("s-{build}"), &attrs, &[]).await;
        let headers = [("buildkit-controlapi-buildid", build.as_str())];
        let path = "/moby.buildkit.v1.frontend.LLBBridge/Return";
        let returned = self.client.send(path, &headers, returning(code)).await.ended().await;
        assert_eq!(returned.code(), Some(0), "{returned:?}");
        let ended = solve.ended().await;
        assert_eq!(ended.code(), Some(code as i32), "{ended:?}");
        let record = tokio::task::block_in_place(|| proxy.build(&build));
        record["backend"].as_str().expect("a name").to_owned()
    }
}

/// A `Return` message: an empty result, or an error with this code.
fn returning(code: Code) -> Bytes {
    let mut message = BytesMut::from(&[0, 0, 0, 0][..]);
    match code {
        Code::Ok => message.put_slice(&[2, 0x0a, 0]),
        // Field 2 is a status with the code in field 1.
        code => message.put_slice(&[4, 0x12, 2, 0x08, code as u8]),
    }
    message.freeze()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_degrades_no_daemon_for_others_whatever_its_builds_end_with() {
    let fleet = Buildkitd::fleet(2);
    let proxy = Proxy::in_front_of(&fleet).policy("consistent-hash").start();
    proxy.wait_ready(2, Duration::from_secs(20));
    let mut attacker = Attacker::connect(&proxy).await;
    let mut at_victim = Vec::new();
    for number in 0..12 {
        let key = format!("k{number}");
        if attacker.build(&proxy, &key, Code::Ok).await == "d0" {
            at_victim.push(key);
        }
    }
    assert!(at_victim.len() >= 2, "{at_victim:?}");
    let codes = [Code::ResourceExhausted, Code::Internal, Code::Unavailable];
    let degraded = || proxy.metric("buildkit_lb_backend_degraded_total", &[]);

    // As long as nobody else builds, the failures of one address count: all clients may have this address.
    let attack = at_victim.iter().cycle().zip(codes.iter().cycle());
    for (key, code) in attack.clone().take(40) {
        if tokio::task::block_in_place(|| state(&proxy, "d0")) == "degraded" {
            break;
        }
        attacker.build(&proxy, key, *code).await;
    }
    assert_eq!(tokio::task::block_in_place(degraded), 1.0);

    // The first build of another client ends that.
    let addr = proxy.addr();
    tokio::task::spawn_blocking(move || {
        succeed(&mut project(&Context::busybox("ARG PROJECT"), &addr, "honest"));
    })
    .await
    .expect("no panic");
    eventually("it is ready again", Duration::from_secs(10), || {
        (state(&proxy, "d0") == "ready").then_some(())
    });
    for (key, code) in attack.take(40) {
        attacker.build(&proxy, key, *code).await;
    }
    assert_eq!(tokio::task::block_in_place(degraded), 1.0);
    assert_eq!(tokio::task::block_in_place(|| state(&proxy, "d0")), "ready");
}

/// Lets `daemon` fail the builds whose refs begin with `attack`, and end all others well.
fn fail_attacks(daemon: &FakeDaemon) {
    daemon.on("Control/Solve", |mut stream| async move {
        let message = stream.read().await;
        let code = if message.windows(6).any(|bytes| bytes == b"attack") { 8 } else { 0 };
        if let Some(mut out) = stream.try_headers() {
            let _ = out.send_trailers(trailers(code, ""));
        }
    });
}

/// Builds a project of its own with the certificate in `directory`, from `address`.
async fn build_as(directory: &Path, address: &str, proxy: &Proxy, id: &str) {
    let client = RawClient::connect_tls_from(address, &proxy.socket(), directory).await;
    let session = format!("s-{id}");
    // A client with a name may use only sessions of its own.
    let _open = client.session(&session).await;
    let solve = client.solve_with(id, &session, &[("buildkit-lb-key", id)], &[]).await;
    let ended = solve.ended().await;
    assert!(matches!(ended.code(), Some(0 | 8)), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_a_name_is_one_client_however_many_addresses_it_has() {
    let fleet = FakeDaemon::fleet(2).await;
    fail_attacks(&fleet[0]);
    fleet[1].finish();
    let authority = Authority::new("of clients");
    let certificate =
        |name| authority.directory(name, &Request { name, names: &[], ..Request::CLIENT });
    let own = authority.directory("proxy", &Request::SERVER);
    let builder = fleet.iter().fold(Builder::default(), |all, one| all.backend(&one.backend()));
    let args = ["--tls-dir", own.to_str().expect("UTF-8")];
    let proxy = builder.policy("random").args(&args).start();
    proxy.wait_ready(2, Duration::from_secs(20));
    // Another client builds, so the failures of one client alone do not count.
    build_as(&certificate("honest"), "127.0.0.1", &proxy, "honest").await;
    let attacker = certificate("attacker");
    for number in 0..40 {
        let address = format!("127.0.0.{}", 2 + number % 8);
        build_as(&attacker, &address, &proxy, &format!("attack-{number}")).await;
    }
    let labels = ["backend=\"f0\"", "grpc_code=\"ResourceExhausted\""];
    let failed = eventually("it fails many", Duration::from_secs(10), || {
        let failed = proxy.metric("buildkit_lb_builds_total", &labels);
        (failed > 3.0).then_some(failed)
    });
    assert_eq!(proxy.metric("buildkit_lb_backend_degraded_total", &[]), 0.0, "{failed} failed");
    assert_eq!(state(&proxy, "f0"), "ready");
}
