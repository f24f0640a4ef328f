//! Connections to a daemon that a build has left, kept for a moment for the next build.
//!
//! A new connection costs both sides more than all else that a short build needs. A build never shares its connection:
//! a connection becomes a spare when the last stream of its build has ended, and one build takes it. Before a build gets
//! a spare, the daemon must answer a PING on it, because a Solve is sent only once, and the connection or the daemon may
//! have died since. A first PING leaves with the end of a session, and costs no system call of its own. If the next build
//! follows at once, its answer is proof enough; otherwise the daemon is asked again. grpc-go closes a connection after
//! three PINGs between which it has sent no headers and no data. So only a connection on which the daemon has answered a
//! call of the last build becomes a spare, and each build sends one PING at its end.

use std::{
    future::poll_fn,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use futures_util::task::{ArcWake, waker_ref};
use h2::{Ping, PingPong, Pong};
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_util::task::TaskTracker;

use super::dial::Sender;
use crate::shares::Share;

/// How long a spare is kept. Builds of one pipeline follow each other within seconds.
const IDLE: Duration = Duration::from_secs(10);

/// The age after which a connection is not kept. So a certificate that was replaced is used no longer than this, and
/// what daemon and network keep for a connection does not grow for ever.
const MAX_AGE: Duration = Duration::from_secs(60);

/// How long the daemon may take to answer a PING: many round trips between zones. A connection without an answer is given
/// up, and a new one is opened, which finds out whether the daemon is there.
const PONG_TIMEOUT: Duration = Duration::from_millis(250);

/// How long an answer to a PING proves that the daemon is there. The builds of a burst follow each other faster.
const FRESH: Duration = Duration::from_millis(10);

/// The most spares of one backend: the builds that may begin at the same time without a new connection.
const MOST: usize = 32;

/// An open connection to a daemon.
#[derive(Debug)]
pub(super) struct Line {
    sender: Sender,
    /// `None` while a build waits for the answer to a PING, and for good if it never came.
    pings: Mutex<Option<PingPong>>,
    opened: Instant,
    state: Arc<LineState>,
}

/// What an open connection and its task share.
#[derive(Debug, Default)]
pub(super) struct LineState {
    ended: AtomicBool,
    /// When the answer to a PING came that nobody waited for.
    answered: Mutex<Option<Instant>>,
    /// The share of the client that uses the connection. A connection that closes keeps the share until it is closed.
    share: Mutex<Option<Share>>,
}

impl LineState {
    /// Notes that the connection is closed.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        self.share.lock().take();
    }

    /// Whether such an answer came a moment ago.
    fn has_just_answered(&self) -> bool {
        self.answered.lock().is_some_and(|at| at.elapsed() < FRESH)
    }
}

/// Notes when the answer to a PING comes.
impl ArcWake for LineState {
    fn wake_by_ref(state: &Arc<Self>) {
        *state.answered.lock() = Some(Instant::now());
    }
}

/// Waits until the daemon answers a PING, unless it has just answered one that nobody waited for.
async fn answer(pings: &mut PingPong, state: &LineState) -> Result<Pong, h2::Error> {
    let unseen = pings.poll_pong(&mut Context::from_waker(Waker::noop()));
    if let Poll::Ready(answer) = unseen
        && (answer.is_err() || state.has_just_answered())
    {
        return answer;
    }
    // An error means that a PING is on its way, or that the connection is closed, which its answer tells, too.
    let _ = pings.send_ping(Ping::opaque());
    poll_fn(|cx| pings.poll_pong(cx)).await
}

impl Line {
    /// A connection that has just been opened.
    pub(super) fn new(sender: Sender, pings: Option<PingPong>) -> Self {
        Self { sender, pings: Mutex::new(pings), opened: Instant::now(), state: Arc::default() }
    }

    /// What the task of the connection needs.
    pub(super) fn state(&self) -> &Arc<LineState> {
        &self.state
    }

    /// Notes that the connection counts for the client of `share` from now on.
    pub(super) fn count_for(&self, share: Option<Share>) {
        *self.state.share.lock() = share;
    }

    /// Whether the connection can no longer be used.
    fn has_ended(&self) -> bool {
        self.state.ended.load(Ordering::Relaxed)
    }

    /// Whether the daemon answers.
    async fn is_alive(&self) -> bool {
        let Some(mut pings) = self.pings.lock().take() else { return false };
        let answered = timeout(PONG_TIMEOUT, answer(&mut pings, &self.state)).await;
        *self.pings.lock() = Some(pings);
        matches!(answered, Ok(Ok(_pong)))
    }

    /// Sends a PING together with what is to be sent anyway, and notes when the answer comes.
    fn ask(&self) {
        if let Some(pings) = &mut *self.pings.lock() {
            // A connection that no longer works is noticed by all that use it.
            let _ = pings.send_ping(Ping::opaque());
            let _ = pings.poll_pong(&mut Context::from_waker(&waker_ref(&self.state)));
        }
    }
}

/// The use of a connection by one link, which the link and each of its streams hold.
#[derive(Debug)]
pub(super) struct Use {
    line: Arc<Line>,
    spares: Option<Arc<Spares>>,
    /// Whether the daemon has answered a call.
    answered: AtomicBool,
    /// Whether a PING has been sent at the end of a session.
    asked: AtomicBool,
}

impl Use {
    /// The use of `line`, which becomes one of `spares` at the end. Without `spares` the connection closes then.
    pub(super) fn new(line: Arc<Line>, spares: Option<Arc<Spares>>) -> Self {
        Self { line, spares, answered: AtomicBool::new(false), asked: AtomicBool::new(false) }
    }

    /// Notes that the daemon has answered a call.
    pub(super) fn note_answer(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }

    /// Notes that the client has sent the last of a session that the daemon has answered. It leaves for the daemon now.
    pub(super) fn note_session_end(&self) {
        if self.spares.is_some() && !self.asked.swap(true, Ordering::Relaxed) {
            self.line.ask();
        }
    }

    /// A handle that opens streams.
    pub(super) fn sender(&self) -> Sender {
        self.line.sender.clone()
    }

    /// Whether the connection can no longer be used.
    pub(super) fn has_ended(&self) -> bool {
        self.line.has_ended()
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        if let Some(spares) = self.spares.as_ref().filter(|_| *self.answered.get_mut()) {
            spares.keep(Arc::clone(&self.line));
        }
    }
}

/// The spares of one backend.
#[derive(Debug)]
pub(super) struct Spares {
    kept: Mutex<Kept>,
    /// How many more spares all backends may have.
    room: Arc<Semaphore>,
    tasks: TaskTracker,
}

#[derive(Debug, Default)]
struct Kept {
    /// The oldest first.
    lines: Vec<Spare>,
    /// Whether a task closes those that were kept too long.
    swept: bool,
}

#[derive(Debug)]
struct Spare {
    line: Arc<Line>,
    since: Instant,
    _room: OwnedSemaphorePermit,
}

impl Spares {
    /// No spares yet. Each takes one permit of `room`.
    pub(super) fn new(room: Arc<Semaphore>, tasks: TaskTracker) -> Self {
        Self { kept: Mutex::default(), room, tasks }
    }

    /// A connection on which the daemon has just answered, if there is one.
    pub(super) async fn take(&self) -> Option<Arc<Line>> {
        let line = self.pop()?;
        if line.is_alive().await {
            return Some(line);
        }
        // The others lead to the same daemon over the same network.
        let others = std::mem::take(&mut self.kept.lock().lines);
        drop(others);
        None
    }

    /// The spare that was used last.
    fn pop(&self) -> Option<Arc<Line>> {
        let mut kept = self.kept.lock();
        std::iter::from_fn(|| kept.lines.pop())
            .map(|spare| spare.line)
            .find(|line| !line.has_ended())
    }

    /// Keeps `line`, unless it is old or there are enough.
    fn keep(self: &Arc<Self>, line: Arc<Line>) {
        if line.has_ended() || line.opened.elapsed() > MAX_AGE {
            return;
        }
        let Ok(room) = Arc::clone(&self.room).try_acquire_owned() else { return };
        let mut kept = self.kept.lock();
        if kept.lines.len() >= MOST {
            return;
        }
        let share = line.state.share.lock().take();
        kept.lines.push(Spare { line, since: Instant::now(), _room: room });
        if !std::mem::replace(&mut kept.swept, true) {
            self.tasks.spawn(sweep(Arc::downgrade(self)));
        }
        drop(kept);
        drop(share);
    }

    /// Closes the spares that were kept too long. Returns how long the next one may be kept, if there is one.
    fn close_old(&self) -> Option<Duration> {
        let mut kept = self.kept.lock();
        let old = kept.lines.iter().take_while(|spare| spare.since.elapsed() >= IDLE).count();
        let old: Vec<_> = kept.lines.drain(..old).collect();
        let next = kept.lines.first().map(|spare| IDLE.saturating_sub(spare.since.elapsed()));
        kept.swept = next.is_some();
        drop(kept);
        drop(old);
        next
    }
}

/// Closes spares as they become old, until there are none.
async fn sweep(spares: Weak<Spares>) {
    let mut next = Some(IDLE);
    while let Some(left) = next {
        sleep(left).await;
        next = spares.upgrade().and_then(|spares| spares.close_old());
    }
}
