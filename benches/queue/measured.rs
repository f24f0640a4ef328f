//! The proxy itself, with clients whose builds wait for the only slot of a daemon that takes no time.

use std::{
    collections::HashMap,
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use buildkit_lb::wire::{self, EMPTY_MESSAGE, control::SolveRequest};
use h2::client::ResponseFuture;
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};

use crate::{
    fake_daemon::{FakeDaemon, Stream, head, send, trailers},
    process::{Process, free_address},
    raw_client::{Answered, Call, RawClient},
    share::{jain, quantile},
    usage::Usage,
};

/// Clients by their addresses. The first has one part of the builds, the second two, and so on.
const CLIENTS: usize = 10;

/// How long each build runs, so that the proxy is not busy with the end of the one before.
const RUNS: Duration = Duration::from_millis(10);

/// How long anything that must come may take.
const LIMIT: Duration = Duration::from_secs(60);

/// What is measured.
#[derive(Debug)]
pub(crate) struct Kind {
    pub(crate) title: &'static str,
    builds: usize,
    /// Whether they wait for the one slot, or find no limit.
    wait: bool,
}

/// The first one is what the others are compared with.
pub(crate) const KINDS: &[Kind] = &[
    Kind { title: "1 000 run", builds: 1000, wait: false },
    Kind { title: "200 wait", builds: 200, wait: true },
    Kind { title: "1 000 wait", builds: 1000, wait: true },
];

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    kib: f64,
    /// Milliseconds until each build was at the daemon.
    grants: Vec<f64>,
    /// Whose builds these were.
    clients: Vec<usize>,
}

impl Outcome {
    /// In the order of the table.
    pub(crate) fn figures(mut self) -> Vec<f64> {
        let fairness = self.fairness();
        let p50 = quantile(&mut self.grants, 0.5);
        vec![self.kib, p50, quantile(&mut self.grants, 0.99), fairness]
    }

    /// Jain's index of the builds of each client, until the first client has no more.
    fn fairness(&self) -> f64 {
        let mut left: HashMap<usize, usize> = HashMap::new();
        self.clients.iter().for_each(|client| *left.entry(*client).or_default() += 1);
        let all = left.clone();
        for client in &self.clients {
            let count = left.entry(*client).or_default();
            *count = count.saturating_sub(1);
            if *count == 0 {
                break;
            }
        }
        jain(all.iter().map(|(client, count)| (count - left[client]) as f64))
    }
}

/// What the daemon tells.
#[derive(Debug)]
enum Event {
    /// A build has arrived.
    Arrived(String, Instant),
    /// One ends.
    Ended(Instant),
}

/// The daemon, its builds, and the proxy before it.
struct Setup {
    proxy: String,
    process: Process,
    events: mpsc::UnboundedReceiver<Event>,
    /// How many builds may end.
    ends: watch::Sender<usize>,
    _daemon: FakeDaemon,
    _directory: tempfile::TempDir,
}

impl Setup {
    async fn start(kind: &Kind) -> Result<Self> {
        let daemon = FakeDaemon::start("only").await;
        let (told, events) = mpsc::unbounded_channel();
        let ends = watch::Sender::new(0);
        let may_end = ends.clone();
        let arrived = Arc::new(AtomicUsize::new(0));
        daemon.on("Control/Solve", move |stream| {
            let (told, may_end) = (told.clone(), may_end.subscribe());
            let arrived = Arc::clone(&arrived);
            async move { solve(stream, &told, &arrived, may_end).await }
        });
        let directory = tempfile::tempdir()?;
        let address = free_address()?;
        let mut command = vec![
            env!("CARGO_BIN_EXE_buildkit-lb").to_owned(),
            "serve".into(),
            format!("--listen=tcp://{address}"),
            format!("--backend={}", daemon.backend()),
            "--admin-listen=127.0.0.1:0".into(),
        ];
        if kind.wait {
            let limits = ["--max-builds=1", "--max-waiting-per-client=1000", "--max-wait=1h"];
            command.extend(limits.map(str::to_owned));
        }
        let log = directory.path().join("log");
        let mut process = Process::start(&command, &log)?;
        process.wait_until_listening(address, &log)?;
        let proxy = address.to_string();
        Ok(Self { proxy, process, events, ends, _daemon: daemon, _directory: directory })
    }

    async fn event(&mut self) -> Result<Event> {
        let event = timeout(LIMIT, self.events.recv()).await.context("the daemon hears nothing")?;
        event.context("the daemon is gone")
    }

    async fn arrived(&mut self) -> Result<(String, Instant)> {
        match self.event().await? {
            Event::Arrived(id, at) => Ok((id, at)),
            Event::Ended(_) => bail!("a build ended before its time"),
        }
    }

    fn private(&self) -> Result<f64> {
        Ok(Usage::of_tree(self.process.id())?.private)
    }
}

/// Tells of the build, and ends it when those that `arrived` before it have ended and it may.
async fn solve(
    mut stream: Stream,
    told: &mpsc::UnboundedSender<Event>,
    arrived: &AtomicUsize,
    mut may_end: watch::Receiver<usize>,
) {
    let request = stream.read().await;
    let Ok(request) = wire::decode::<SolveRequest>(&request) else { return };
    if !request.internal {
        let id = String::from_utf8_lossy(&request.r#ref).into_owned();
        let before = arrived.fetch_add(1, Ordering::Relaxed);
        let _ = told.send(Event::Arrived(id, Instant::now()));
        tokio::select! {
            _ = may_end.wait_for(|ended| *ended > before) => {}
            _ = poll_fn(|cx| stream.respond.poll_reset(cx)) => return,
        }
        let _ = told.send(Event::Ended(Instant::now()));
    }
    if let Ok(mut out) = stream.respond.send_response(head(), false) {
        let _ = send(&mut out, EMPTY_MESSAGE).await;
        let _ = out.send_trailers(trailers(0, ""));
    }
}

/// A build of which Session, Status and Solve are open.
struct Build {
    _client: RawClient,
    _open: [Answered; 2],
    solved: ResponseFuture,
}

/// The same before any of them is answered.
struct Opening {
    client: RawClient,
    session: Call,
    status: Call,
    solve: Call,
    /// When the Solve was sent.
    sent: Instant,
}
impl Opening {
    /// Opens the build `number`; one client of each address has as many as the address's own number.
    async fn new(setup: &Setup, number: usize) -> Self {
        let client = client_of(number);
        let (id, session) = (format!("{number}-{client}"), format!("s-{number}"));
        let address = format!("127.0.0.{}", client + 1);
        let client = RawClient::connect_from(&address, &setup.proxy).await;
        let session_call = client.session(&session).await;
        let status = client.by_ref("Status", &id).await;
        let sent = Instant::now();
        let solve = client.solve(&id, &session).await;
        Self { client, session: session_call, status, solve, sent }
    }

    /// Waits until the calls beside the Solve are answered.
    async fn opened(self) -> Result<Build> {
        let open = [self.session.answered().await?, self.status.answered().await?];
        let (_upload, solved) = self.solve.into_parts();
        Ok(Build { _client: self.client, _open: open, solved })
    }
}

/// Whose build it is: of 55 in a row, the first client has one, the second two, and so on.
fn client_of(number: usize) -> usize {
    let row: Vec<usize> =
        (0..CLIENTS).flat_map(|client| std::iter::repeat_n(client, client + 1)).collect();
    // In an order in which none has its builds one after the other.
    row[number * 17 % row.len()]
}

fn client_in(id: &str) -> usize {
    id.rsplit('-').next().and_then(|client| client.parse().ok()).unwrap_or_default()
}

/// Measures one kind of builds once.
pub(crate) async fn run(kind: &Kind) -> Result<Outcome> {
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    let mut setup = Setup::start(kind).await?;
    // It takes the slot, and pays for what a process does once.
    let first = Opening::new(&setup, 0).await;
    setup.arrived().await?;
    let first = first.opened().await?;
    let before = setup.private()?;
    let mut outcome = Outcome::default();
    let mut opening = Vec::new();
    for number in 1..=kind.builds {
        let build = Opening::new(&setup, number).await;
        if !kind.wait {
            let (id, arrived) = setup.arrived().await?;
            outcome.grants.push(millis(arrived - build.sent));
            outcome.clients.push(client_in(&id));
        }
        opening.push(build);
    }
    let mut builds = Vec::new();
    for build in opening {
        builds.push(build.opened().await?);
    }
    outcome.kib = (setup.private()? - before) / 1024.0 / kind.builds as f64;
    if kind.wait {
        serve(&mut setup, [first].into_iter().chain(builds), &mut outcome).await?;
    }
    Ok(outcome)
}

/// Lets the build that runs end, and then the next one, until none is left; notes how long the slot was free.
async fn serve(
    setup: &mut Setup,
    builds: impl Iterator<Item = Build>,
    outcome: &mut Outcome,
) -> Result<()> {
    let mut waiting = 0_usize;
    for build in builds {
        waiting += 1;
        tokio::spawn(async move {
            // Its client goes with it.
            let Build { _client, _open, solved } = build;
            let _ = solved.await;
        });
    }
    for _ in 1..waiting {
        sleep(RUNS).await;
        setup.ends.send_modify(|ended| *ended += 1);
        let Event::Ended(ended) = setup.event().await? else { bail!("two builds have one slot") };
        let (id, arrived) = setup.arrived().await?;
        outcome.grants.push(millis(arrived - ended));
        outcome.clients.push(client_in(&id));
    }
    Ok(())
}

fn millis(duration: Duration) -> f64 {
    1000.0 * duration.as_secs_f64()
}
