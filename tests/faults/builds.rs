//! The calls of a build meet at one daemon, in any order and over any connection.

use buildkit_lb::wire::{self, control::BuildHistoryRequest};
use bytes::Bytes;
use serde_json::json;

use crate::{
    CALLS, WAIT, proxy,
    support::{
        eventually,
        fake_daemon::FakeDaemon,
        free_port,
        proxy::{Builder, Proxy},
        raw_client::RawClient,
    },
};

/// How many calls of a build the proxy has received.
fn received(proxy: &Proxy) -> f64 {
    let of = |call: &str| {
        let (_service, method) = call.split_once('/').expect("a service");
        proxy.metric("grpc_server_started_total", &[&format!("grpc_method=\"{method}\"")])
    };
    CALLS.iter().map(|call| of(call)).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_calls_of_a_build_meet_in_any_order_and_over_any_connection() {
    let fleet = FakeDaemon::fleet(3).await;
    let proxy = proxy(&fleet);
    for (number, order) in
        permutations(&["session", "solve", "status", "ping"]).into_iter().enumerate()
    {
        let (build, session) = (format!("r{number}"), format!("s{number}"));
        let mut calls = Vec::new();
        for call in order {
            let client = RawClient::connect(&proxy.socket()).await;
            calls.push(match call {
                "session" => client.session(&session).await,
                "solve" => client.solve(&build, &session).await,
                "status" => client.by_ref("Status", &build).await,
                _ => client.bridge("Ping", &build).await,
            });
            let sent = number * CALLS.len() + calls.len();
            eventually("the call is at the proxy", WAIT, || {
                (received(&proxy) == sent as f64).then_some(())
            });
        }
        let all_at = |daemon: &FakeDaemon| {
            CALLS.iter().all(|call| {
                let id = if *call == "Control/Session" { &session } else { &build };
                daemon.seen(call).iter().any(|seen| seen.id() == *id)
            })
        };
        eventually("all its calls are at one daemon", WAIT, || {
            (fleet.iter().any(all_at)).then_some(())
        });
        drop(calls);
    }
    for call in CALLS {
        let seen: usize = fleet.iter().map(|daemon| daemon.seen(call).len()).sum();
        assert_eq!(seen, 24, "each {call} was sent once, to one daemon");
    }
}

fn permutations<'a>(items: &[&'a str]) -> Vec<Vec<&'a str>> {
    if items.is_empty() {
        return vec![Vec::new()];
    }
    let with_first = |index: usize| {
        let mut rest = items.to_vec();
        let first = rest.remove(index);
        permutations(&rest).into_iter().map(move |rest| [vec![first], rest].concat())
    };
    (0..items.len()).flat_map(with_first).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_session_brings_its_targets_together() {
    let fleet = FakeDaemon::fleet(3).await;
    let proxy = proxy(&fleet);
    for round in 0..10 {
        let shared = format!("shared{round}");
        let attrs = [("local-sessionid:context", shared.as_str())];
        let mut calls = Vec::new();
        for target in 0..4 {
            let client = RawClient::connect(&proxy.socket()).await;
            let id = format!("{round}-{target}");
            if target == 2 {
                calls.push(client.session(&shared).await);
            }
            calls.push(client.solve_with(&id, &id, &attrs, &[]).await);
        }
        let daemons = || fleet.iter().map(|daemon| daemon.seen("Control/Solve").len());
        eventually("the Solves arrive", WAIT, || {
            (daemons().sum::<usize>() == 4 * (round + 1)).then_some(())
        });
        assert!(
            daemons().all(|solves| solves % 4 == 0),
            "split: {:?}",
            daemons().collect::<Vec<_>>()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_linked_target_follows_its_trace_even_after_its_input_has_ended() {
    let fleet = FakeDaemon::fleet(3).await;
    let proxy = proxy(&fleet);
    fleet.iter().for_each(FakeDaemon::finish);
    for round in 0..10 {
        let trace = format!("00-{:032x}-0000000000000001-01", round + 1);
        let headers = [("traceparent", trace.as_str())];
        for (target, attr) in
            [("a", ("filename", "Dockerfile")), ("b", ("context:base", "input:0-a"))]
        {
            let client = RawClient::connect(&proxy.socket()).await;
            let id = format!("{round}{target}");
            let ended = client.solve_with(&id, &id, &[attr], &headers).await.ended().await;
            assert_eq!(ended.code(), Some(0));
        }
        let solves: Vec<_> =
            fleet.iter().map(|daemon| daemon.seen("Control/Solve").len()).collect();
        assert!(solves.iter().all(|solves| solves % 2 == 0), "split: {solves:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_that_only_share_a_pipelines_trace_are_spread() {
    let fleet = FakeDaemon::fleet(3).await;
    let proxy = proxy(&fleet);
    let headers = [("traceparent", "00-0000000000000000000000000000000f-0000000000000001-01")];
    let mut open = Vec::new();
    for build in 0..30 {
        let client = RawClient::connect(&proxy.socket()).await;
        let id = build.to_string();
        open.push(client.solve_with(&id, &id, &[], &headers).await);
    }
    let solves = || fleet.iter().map(|daemon| daemon.seen("Control/Solve").len());
    eventually("the Solves arrive", WAIT, || (solves().sum::<usize>() == 30).then_some(()));
    assert!(solves().all(|solves| solves > 0), "{:?}", solves().collect::<Vec<_>>());
}

/// Runs a build with the ref and the session `id` to its end. Returns its client, which stays connected.
async fn ended_build(proxy: &Proxy, id: &str) -> RawClient {
    let client = RawClient::connect(&proxy.socket()).await;
    assert_eq!(client.solve(id, id).await.ended().await.code(), Some(0));
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn later_calls_of_an_ended_build_reach_its_daemon() {
    let fleet = FakeDaemon::fleet(3).await;
    let proxy = proxy(&fleet);
    fleet.iter().for_each(FakeDaemon::finish);
    for round in 0..6 {
        let id = format!("ended{round}");
        let client = ended_build(&proxy, &id).await;
        let home = fleet.iter().position(|daemon| {
            !daemon.seen("Control/Solve").is_empty() && daemon.seen("Control/Status").is_empty()
                || daemon.seen("Control/Solve").len() > daemon.seen("Control/Status").len()
        });
        let home = &fleet[home.expect("one has it")];
        for method in ["Status", "UpdateBuildHistory"] {
            let later = RawClient::connect(&proxy.socket()).await;
            let before = home.seen(method).len();
            assert_eq!(later.by_ref(method, &id).await.ended().await.code(), Some(0));
            assert_eq!(home.seen(method).len(), before + 1, "{method}");
        }
        assert_eq!(client.bridge("Evaluate", &id).await.ended().await.code(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_solve_ends_its_siblings_so_that_its_error_is_the_one_shown() {
    let port = free_port();
    let gone = format!("gone=tcp://127.0.0.1:{port}");
    let proxy = Builder::default().backend(&gone).args(&["--max-wait", "0s"]).start();
    let client = RawClient::connect(&proxy.socket()).await;
    let mut session = client.session("s").await;
    let status = client.by_ref("Status", "r").await;
    let ping = client.bridge("Ping", "r").await;
    let solve = client.solve("r", "s").await.ended().await;
    assert_eq!((solve.code(), solve.marker()), (Some(14), Some("no_backend")));
    assert!(solve.message().contains("backend gone"), "{}", solve.message());
    assert_eq!(ping.ended().await.code(), Some(14));
    assert_eq!(status.ended().await.code(), Some(0), "an error here would hide the Solve's");
    session.upload.send_data(Bytes::new(), true).expect("half-closed");
    assert_eq!(session.ended().await.code(), Some(0));
    let late = client.by_ref("Status", "r").await.ended().await;
    assert_eq!(late.code(), Some(0), "one that comes later is ended too");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_of_an_ended_build_is_asked_where_it_ran() {
    let fleet = FakeDaemon::fleet(3).await;
    let proxy = proxy(&fleet);
    fleet.iter().for_each(FakeDaemon::finish);
    for round in 0..6 {
        let id = format!("ended{round}");
        let _client = ended_build(&proxy, &id).await;
        let later = RawClient::connect(&proxy.socket()).await;
        let path = "/moby.buildkit.v1.Control/ListenBuildHistory";
        let request = BuildHistoryRequest {
            r#ref: id.clone().into(),
            early_exit: true,
            ..Default::default()
        };
        let ended = later.send(path, &[], wire::encode(&request)).await.ended().await;
        assert_eq!(ended.code(), Some(0), "{ended:?}");
    }
    for daemon in &fleet {
        let counts =
            ["Control/Solve", "ListenBuildHistory"].map(|method| daemon.seen(method).len());
        assert_eq!(counts[0], counts[1], "{}", daemon.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_needs_sessions_of_two_daemons_is_told_of() {
    let fleet = FakeDaemon::fleet(2).await;
    let proxy = proxy(&fleet);
    let mut open = Vec::new();
    for (own, other) in [(0, 1), (1, 0)] {
        let cordon = format!("/backends/{}/cordon", fleet[other].name);
        assert_eq!(proxy.control("POST", &cordon).0, 200);
        let client = RawClient::connect(&proxy.socket()).await;
        let id = format!("on-{own}");
        open.push((client.solve(&id, &id).await, client.session(&id).await, client));
        eventually("both arrive", WAIT, || {
            (fleet[own].seen("Control/Session").len() == 1).then_some(())
        });
        assert_eq!(proxy.control("DELETE", &cordon).0, 200);
    }
    let client = RawClient::connect(&proxy.socket()).await;
    let attrs = [("local-sessionid:a", "on-0"), ("local-sessionid:b", "on-1")];
    let alone = client.solve_with("alone", "own", &attrs[..1], &[]).await;
    let both = client.solve_with("both", "other", &attrs, &[]).await;
    eventually("both builds arrive", WAIT, || {
        (fleet[0].seen("Control/Solve").len() == 3).then_some(())
    });
    let warnings = proxy.records("build needs sessions on two backends");
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    let told = ["ref", "backend", "key", "elsewhere"].map(|field| &warnings[0][field]);
    let [here, there] = [&fleet[0].name, &fleet[1].name];
    // The record shows a hash instead of a session's id; it belongs to the session whose own Solve runs there.
    let record = proxy.status()["builds"].as_array().expect("a list").clone();
    let of = |build: &str| {
        record.iter().find(|one| one["ref"] == build).expect("it runs")["session"].clone()
    };
    assert_eq!(told, [&json!("both"), &json!(here), &of("on-1"), &json!(there)]);
    assert_eq!(proxy.metric("buildkit_lb_binding_conflicts_total", &[]), 1.0);
    drop((open, alone, both));
}
