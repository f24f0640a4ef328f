use std::{sync::atomic::AtomicUsize as Count, time::Duration};

use rand::RngExt as _;
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

use super::*;
use crate::{
    descriptors::Budget,
    directory::{Directory, Ties, WaitSender},
    fleet::{
        Fault,
        tests::{endpoint, fleet},
    },
    ids::BindingKey,
    placement::{self, Placed, Wish, warm},
    policy::Policy,
    upstream::{Connections, SharedLinks},
};

/// A port whose connections are accepted and kept.
async fn accepting() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((socket, _peer)) = listener.accept().await {
            tokio::spawn(async move {
                if let Ok(mut connection) = h2::server::handshake(socket).await {
                    while let Some(Ok(_call)) = connection.accept().await {}
                }
            });
        }
    });
    port
}

/// A placement in front of `daemons` of so many slots each, whose queue is served.
async fn placement(daemons: usize, config: Config) -> Arc<Placement> {
    let mut endpoints = Vec::new();
    for number in 0..daemons {
        endpoints.push(endpoint(&format!("d{number}"), accepting().await));
    }
    let tasks = TaskTracker::new();
    let placement = Arc::new(Placement::new(
        Directory::default(),
        Arc::new(fleet(endpoints)),
        Arc::new(SharedLinks::new(Connections::of(Budget::of(25_000)), tasks.clone())),
        Arc::default(),
        placement::Config {
            policy: Policy::default(),
            warm: warm::Config::default(),
            queue: config,
        },
        Arc::new(Metrics::default()),
        CancellationToken::new(),
    ));
    let serving = Arc::clone(&placement);
    tasks.spawn(async move { serving.serve_queue(CancellationToken::new()).await });
    placement
}

fn slots(count: u32) -> Config {
    let max_wait = default_max_wait(true);
    Config { max_builds: NonZeroU32::new(count), max_wait, ..Config::default() }
}

fn wish(number: usize, key: &str) -> Wish {
    let build = Id::new(number.to_string().as_bytes(), None);
    let own: Vec<_> = build.iter().cloned().map(BindingKey::Build).collect();
    let ties = Ties { keys: own.clone(), own, ..Ties::default() };
    Wish {
        ties: Arc::new(ties),
        build,
        linked: false,
        key: Some(KeyHash::new(key)),
        affinity: None,
        preferred: None,
        by_load: false,
        probe: false,
        weight: Weight::ONE,
        span: None,
    }
}

fn client(number: usize) -> Client {
    let last = u8::try_from(number % 8).unwrap_or_default();
    let address = Some(IpAddr::from([127, 0, 0, last]));
    Client::new(number as u64, address)
}

async fn place(placement: &Placement, number: usize, key: &str) -> Result<Placed, ProxyError> {
    placement.place(wish(number, key), &client(number), &WaitSender::new(None)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_builds_that_end_or_leave_at_any_moment_leak_no_slot() {
    const SLOTS: u32 = 3;
    let placement = placement(4, slots(SLOTS)).await;
    let (next, granted) = (Arc::new(Count::new(0)), Arc::new(Count::new(0)));
    let worker = || {
        let (placement, next, granted) =
            (Arc::clone(&placement), Arc::clone(&next), Arc::clone(&granted));
        async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= 10_000 {
                    return;
                }
                let pause = Duration::from_micros(rand::rng().random_range(0..8000));
                let key = (number % 10).to_string();
                // Most go away while they wait, or when their turn has just come.
                let patience = if number % 4 == 0 { Duration::from_secs(600) } else { pause };
                let placed = tokio::time::timeout(patience, place(&placement, number, &key)).await;
                let Ok(Ok(placed)) = placed else { continue };
                granted.fetch_add(1, Ordering::Relaxed);
                let backend = placed.count.backend();
                assert!(backend.builds() <= SLOTS, "{}: {}", backend.name(), backend.builds());
                tokio::time::sleep(pause / 4).await;
                // A daemon is away for a moment now and then.
                if number % 500 == 0 {
                    backend.report_fault(Fault::Lost, "reset", Instant::now());
                    tokio::time::sleep(pause).await;
                    backend.report_healthy();
                }
            }
        }
    };
    let workers: Vec<_> = (0..64).map(|_| tokio::spawn(worker())).collect();
    for worker in workers {
        worker.await.expect("no more builds than slots");
    }
    assert!(granted.load(Ordering::Relaxed) > 2000, "{granted:?}");
    let nothing = Demand { running: 0, waiting: 0, slots: NonZeroU32::new(SLOTS) };
    assert_eq!(placement.demand(), nothing);
    assert!(placement.fleet.backends().iter().all(|backend| backend.builds() == 0));
    let state = placement.queue.state.lock();
    assert!(state.order.is_idle() && state.entries.is_empty(), "{state:?}");
}

/// Occupies all slots with builds of `key`.
async fn fill(placement: &Placement, count: usize, key: &str) -> Vec<Placed> {
    let mut placed = Vec::new();
    for number in 0..count {
        placed.push(place(placement, 1000 + number, key).await.expect("a free slot"));
    }
    placed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_waits_for_the_daemon_that_has_its_cache() {
    let affinity_wait = Duration::from_secs(600);
    let placement = placement(2, Config { affinity_wait, ..slots(1) }).await;
    let mut running = fill(&placement, 2, "other").await;
    let warm = Arc::clone(running[0].count.backend());
    placement.note_warm(KeyHash::new("x"), &warm);
    let waiting = Arc::clone(&placement);
    let waiting = tokio::spawn(async move { place(&waiting, 1, "x").await });
    loop {
        let changed = placement.demand_changed();
        if placement.demand().waiting == 1 {
            break;
        }
        changed.await;
    }
    // It lets another build have the slot of the other daemon.
    let cold = Arc::clone(running.remove(1).count.backend());
    let other = place(&placement, 2, "y").await.expect("a free slot");
    assert_eq!(other.count.backend().name(), cold.name());
    assert_eq!(placement.demand().waiting, 1);
    drop(running);
    let placed = waiting.await.expect("no panic").expect("placed");
    assert_eq!(placed.count.backend().name(), warm.name());
    assert!(placed.waited.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_waits_for_its_cache_no_longer_than_it_may() {
    let affinity_wait = Duration::from_millis(50);
    let placement = placement(2, Config { affinity_wait, ..slots(1) }).await;
    let mut running = fill(&placement, 2, "other").await;
    let warm = Arc::clone(running[0].count.backend());
    placement.note_warm(KeyHash::new("x"), &warm);
    let cold = Arc::clone(running.remove(1).count.backend());
    let placed = place(&placement, 1, "x").await.expect("placed");
    assert_eq!(placed.count.backend().name(), cold.name());
    assert!(placed.waited.is_some_and(|waited| waited.wait >= affinity_wait));
}
