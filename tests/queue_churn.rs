//! Builds wait, run and end while daemons come and go. Each build runs once, and leaves nothing behind.
#![allow(clippy::disallowed_methods, reason = "a test's tasks end with its runtime")]

mod support;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use support::{
    eventually,
    fake_daemon::{FakeDaemon, Seen, Stream, head, send, trailers},
    proxy::{Builder, Proxy},
    raw_client::RawClient,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

/// The longest time for all of it. Nothing here waits for a time, but a busy machine may need minutes.
const WAIT: Duration = Duration::from_secs(300);

/// Lets builds on `daemon` take a moment.
fn build_quickly(daemon: &FakeDaemon) {
    daemon.on("Control/Solve", |mut stream: Stream| async move {
        stream.read().await;
        tokio::time::sleep(Duration::from_millis(3)).await;
        if let Ok(mut out) = stream.respond.send_response(head(), false) {
            let _ = send(&mut out, Bytes::from_static(&[0; 5])).await;
            let _ = out.send_trailers(trailers(0, ""));
        }
    });
}

/// A way to a daemon that accepts no connection while it is closed. Open connections stay, so that running builds go on,
/// but no PING is answered, so that no further build gets a connection that an earlier one has left.
struct Door {
    socket: String,
    open: watch::Sender<bool>,
    _accepting: JoinHandle<()>,
}

impl Door {
    async fn new(to: String) -> Self {
        let mut listener = Some(TcpListener::bind("127.0.0.1:0").await.expect("a port"));
        let address = listener.as_ref().and_then(|own| own.local_addr().ok()).expect("bound");
        let (open, mut state) = watch::channel(true);
        let accepting = tokio::spawn(async move {
            loop {
                if !*state.borrow_and_update() {
                    listener = None;
                    let _ = state.wait_for(|open| *open).await;
                }
                let own = match listener.take() {
                    Some(own) => own,
                    None => TcpListener::bind(address).await.expect("its own port"),
                };
                tokio::select! {
                    accepted = own.accept() => {
                        let (from, _peer) = accepted.expect("a connection");
                        let to = TcpStream::connect(&to).await.expect("the daemon accepts");
                        let ((mut asks, hears), (says, mut heeds)) = (from.into_split(), to.into_split());
                        tokio::spawn(async move {
                            let _ = copy(&mut asks, &mut heeds).await;
                            let _ = heeds.shutdown().await;
                        });
                        tokio::spawn(carry_answers(says, hears, state.clone()));
                    }
                    _ = state.changed() => {}
                }
                listener = Some(own);
            }
        });
        Self { socket: address.to_string(), open, _accepting: accepting }
    }
}

/// Carries the frames of a daemon to its client, without those that answer a PING while the door is not `open` (RFC 9113,
/// section 6.7).
async fn carry_answers(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    open: watch::Receiver<bool>,
) {
    const HEAD_LEN: usize = 9;
    let mut head = [0; HEAD_LEN];
    while from.read_exact(&mut head).await.is_ok() {
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut frame = head.to_vec();
        frame.resize(HEAD_LEN + len, 0);
        if from.read_exact(&mut frame[HEAD_LEN..]).await.is_err() {
            break;
        }
        let answers_a_ping = head[3] == 6 && head[4] & 1 == 1;
        if answers_a_ping && !*open.borrow() {
            continue;
        }
        if to.write_all(&frame).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

/// The builds that have ended, over all workers.
#[derive(Clone, Default)]
struct Done(Arc<AtomicUsize>);

impl Done {
    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn reaches(&self, count: usize) {
        eventually(&format!("{count} builds"), WAIT, || (self.count() >= count).then_some(()));
    }
}

/// Builds `count` times, each time on a connection of its own. All builds must succeed.
async fn build_all(socket: String, worker: usize, count: usize, done: Done) {
    for number in 0..count {
        let (id, session) = (format!("w{worker}-{number}"), format!("s{worker}-{number}"));
        let client = RawClient::connect(&socket).await;
        let _session = client.session(&session).await;
        let _status = client.by_ref("Status", &id).await;
        let (_upload, solved) = client.solve(&id, &session).await.into_parts();
        let mut body = solved.await.expect("no reset").into_body();
        while let Some(data) = body.data().await {
            let data = data.expect("no reset");
            let _ = body.flow_control().release_capacity(data.len());
        }
        let trailers = body.trailers().await.expect("no reset").expect("trailers");
        assert_eq!(trailers["grpc-status"], "0", "{id}: {trailers:?}");
        done.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn waits(proxy: &Proxy) -> bool {
    proxy.metric("buildkit_lb_queue_depth", &[]) > 0.0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_build_runs_once_however_often_its_daemons_come_and_go() {
    const WORKERS: usize = 8;
    const EACH: usize = 200;
    let fleet = FakeDaemon::fleet(2).await;
    let mut doors = Vec::new();
    let mut builder = Builder::default();
    for daemon in &fleet {
        build_quickly(daemon);
        let door = Door::new(daemon.socket()).await;
        builder = builder.backend(&daemon.behind(&door.socket));
        doors.push(door);
    }
    let proxy = builder.args(&["--max-builds", "2"]).start();
    proxy.wait_ready(2, WAIT);
    let done = Done::default();
    let workers: Vec<_> = (0..WORKERS)
        .map(|worker| tokio::spawn(build_all(proxy.socket(), worker, EACH, done.clone())))
        .collect();
    // One daemon is away, then the other, then both. With both away, builds wait for a daemon and not only for a slot.
    for away in [vec![0], vec![1], vec![0, 1], vec![0, 1], vec![1], vec![0, 1]] {
        let before = done.count();
        for door in &away {
            doors[*door].open.send_replace(false);
        }
        if away.len() == doors.len() {
            eventually("no daemon is ready", WAIT, || {
                let ready = proxy.metric("buildkit_lb_backend_state", &["state=\"ready\""]);
                (ready == 0.0 && waits(&proxy)).then_some(())
            });
        } else {
            done.reaches((before + 100).min(WORKERS * EACH));
        }
        for door in &away {
            doors[*door].open.send_replace(true);
        }
        done.reaches((before + 200).min(WORKERS * EACH));
    }
    for worker in workers {
        worker.await.expect("all builds succeed");
    }
    let mut runs: HashMap<String, usize> = HashMap::new();
    for daemon in &fleet {
        for id in daemon.seen("Control/Solve").iter().map(Seen::id) {
            *runs.entry(id).or_default() += 1;
        }
    }
    let twice: Vec<_> = runs.iter().filter(|(_, count)| **count != 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    assert_eq!(runs.len(), WORKERS * EACH);
    assert!(proxy.metric("buildkit_lb_queue_left_total", &["granted"]) > 0.0, "some have waited");
    nothing_is_left(&proxy);
}

/// Waits until the proxy counts nothing any more of what builds and their calls take.
fn nothing_is_left(proxy: &Proxy) {
    for gauge in [
        "buildkit_lb_queue_depth",
        "buildkit_lb_builds_active",
        "buildkit_lb_sessions_active",
        "buildkit_lb_parked_streams",
        "buildkit_lb_connections_active",
    ] {
        eventually(&format!("{gauge} is 0"), WAIT, || {
            (proxy.metric(gauge, &[]) == 0.0).then_some(())
        });
    }
    let status = proxy.status();
    for list in ["builds", "queue"] {
        assert_eq!(status[list].as_array().map(Vec::len), Some(0), "{list}: {status}");
    }
}

/// One build whose client may go away at any moment.
async fn build_at_random(socket: &str, number: usize, rng: &mut StdRng) {
    let (id, session) = (format!("b{number}"), format!("s{number}"));
    let address = format!("127.0.0.{}", 1 + number % 8);
    let client = RawClient::connect_from(&address, socket).await;
    let _session = client.session(&session).await;
    let _status = client.by_ref("Status", &id).await;
    let key = format!("project-{}", number % 10);
    let solve = client.solve_with(&id, &session, &[("buildkit-lb-key", &key)], &[]).await;
    let (mut upload, solved) = solve.into_parts();
    let pause = Duration::from_millis(rng.random_range(0..40));
    match number % 4 {
        // This client stays, whatever comes.
        0 => drop(tokio::time::timeout(WAIT, solved).await.expect("an answer")),
        // This client goes while the build waits or runs.
        1 => drop(tokio::time::timeout(pause, solved).await),
        // This client gives up only the build.
        2 => {
            tokio::time::sleep(pause / 4).await;
            upload.send_reset(h2::Reason::CANCEL);
        }
        // This client goes at once.
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn thousands_of_builds_whose_clients_and_daemons_die_leave_nothing() {
    const WORKERS: usize = 24;
    const BUILDS: usize = 3000;
    let fleet = Arc::new(FakeDaemon::fleet(3).await);
    fleet.iter().for_each(build_quickly);
    let builder = fleet.iter().fold(Builder::default(), |all, one| all.backend(&one.backend()));
    let proxy = builder.args(&["--max-builds", "2", "--affinity-wait", "20ms"]).start();
    proxy.wait_ready(3, WAIT);
    let next = Done::default();
    let worker = |seed: usize| {
        let (next, socket, fleet) = (next.clone(), proxy.socket(), Arc::clone(&fleet));
        async move {
            let mut rng = StdRng::seed_from_u64(seed as u64);
            loop {
                let number = next.0.fetch_add(1, Ordering::Relaxed);
                if number >= BUILDS {
                    return;
                }
                build_at_random(&socket, number, &mut rng).await;
                if number % 50 == 49 {
                    fleet[number / 50 % fleet.len()].cut_all();
                }
            }
        }
    };
    let workers: Vec<_> = (0..WORKERS).map(|seed| tokio::spawn(worker(seed))).collect();
    for worker in workers {
        worker.await.expect("no panic");
    }
    nothing_is_left(&proxy);
    assert!(proxy.metric("buildkit_lb_queue_left_total", &["granted"]) > 0.0);
    assert!(proxy.metric("buildkit_lb_queue_left_total", &["client_gone"]) > 0.0);

    // All slots are still there, and no more than before.
    proxy.wait_ready(3, WAIT);
    for daemon in fleet.iter() {
        daemon.on("Control/Solve", |mut stream: Stream| async move {
            stream.read().await;
            let _ = std::future::poll_fn(|cx| stream.respond.poll_reset(cx)).await;
        });
    }
    let mut last = Vec::new();
    for number in 0..7 {
        let client = RawClient::connect(&proxy.socket()).await;
        last.push(client.solve(&format!("last-{number}"), &format!("last-s{number}")).await);
        if number == 5 {
            eventually("six run", WAIT, || {
                (proxy.metric("buildkit_lb_builds_active", &[]) == 6.0).then_some(())
            });
        }
    }
    eventually("the seventh waits", WAIT, || {
        (proxy.metric("buildkit_lb_queue_depth", &[]) == 1.0).then_some(())
    });
    assert_eq!(proxy.metric("buildkit_lb_builds_active", &[]), 6.0);
    drop(last);
    nothing_is_left(&proxy);
}
