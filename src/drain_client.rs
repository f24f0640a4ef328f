//! `buildkit-lb drain-backend`: asks every proxy to give a backend no new builds and to answer when the running
//! builds have ended. The caller is about to stop the daemon.
//!
//! The cordon that a request sets ends by itself. So proxies that have finished are asked again and again until all
//! have finished at the same time: a proxy that was drained first gives the backend no new builds while another one
//! is waited for.

use std::{
    cell::RefCell,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use http::{Method, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::sync::Notify;
use tracing::{debug, info, warn};

use crate::{
    address::Address,
    admin_client::{CredentialFlags, ProxyAddress, Question, RequestError, send},
    error::chain,
    shutdown::Signals,
};

/// How soon a proxy that has finished is asked again: well within the lease of its cordon.
const RENEW: Duration = Duration::from_secs(20);

/// How soon a proxy is asked again that refused or did not answer.
const PAUSE: Duration = Duration::from_secs(1);

/// How much longer an answer may take than the remaining timeout, for the way there and back.
const SLACK: Duration = Duration::from_secs(10);

/// How long a proxy that does not answer is tried. DNS may be behind for a moment, or the proxy may be starting. A
/// proxy that is away for longer sends no builds either.
const ABSENT: Duration = Duration::from_secs(10);

/// How long a proxy that refuses is tried. A changed Secret reaches all pods within two minutes.
const REFUSING: Duration = Duration::from_secs(120);

/// The longest answer that is read. Proxies send some lines of text.
const MAX_ANSWER: usize = 64 * 1024;

/// The flags of `drain-backend`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Name of the backend, as the proxies know it.
    name: String,
    /// Admin port of the proxies, HOST:PORT, at all addresses of the host, or a control listener, unix:///PATH.
    /// Repeatable.
    #[arg(long, value_name = "ADDR", value_delimiter = ',', required = true)]
    proxy: Vec<Address>,
    #[command(flatten)]
    credentials: CredentialFlags,
    /// Addresses of the daemon, if several daemons have the same name.
    #[arg(long, value_name = "IP,…")]
    address: Option<String>,
    /// How long to wait for builds, for example 30s, 10m or 1h.
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Begin at SIGTERM or SIGINT instead of at once, for a container beside the daemon: it gets the signal when
    /// the daemon has to stop.
    #[arg(long)]
    at_signal: bool,
    /// File to create at the end. Whatever stops the daemon waits for this file.
    #[arg(long, value_name = "FILE")]
    done_file: Option<PathBuf>,
}

/// Why a drain fails.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("some proxies still have builds, or did not answer")]
    Left,
    #[error("a second signal came")]
    Signal,
}

/// Drains one backend. The exit code and the log say how it went.
pub async fn run(options: Options) -> ExitCode {
    if let Some(file) = &options.done_file {
        // The file was left by another daemon, before a restart.
        let _ = std::fs::remove_file(file);
    }
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => {
            warn!(%error, "cannot handle signals");
            return ExitCode::FAILURE;
        }
    };
    if options.at_signal {
        info!(backend = options.name, "waiting for the signal to drain");
        signals.next().await;
    }
    let result = tokio::select! {
        result = drain(&options) => result,
        _signal = signals.next() => Err(Failure::Signal),
    };
    let mut code = ExitCode::SUCCESS;
    match result {
        Ok(()) => info!(backend = options.name, "drained"),
        Err(error) => {
            warn!(backend = options.name, %error, "not drained");
            code = ExitCode::FAILURE;
        }
    }
    if let Some(file) = &options.done_file
        && let Err(error) = std::fs::write(file, "")
    {
        warn!(file = %file.display(), %error, "cannot write the state file");
        code = ExitCode::FAILURE;
    }
    code
}

async fn drain(options: &Options) -> Result<(), Failure> {
    info!(backend = options.name, timeout = ?options.timeout, "draining");
    let deadline = Instant::now() + options.timeout;
    let addresses = addresses(&options.proxy).await;
    let board = Board::new(addresses.len());
    let all = addresses.iter().enumerate();
    let all = join_all(all.map(|(at, address)| follow(address, options, deadline, &board, at)));
    tokio::select! {
        _ended = all => {}
        () = board.all_settled() => {}
        () = tokio::time::sleep(options.timeout + SLACK) => {}
    }
    if addresses.is_empty() || board.0.borrow().iter().any(|verdict| *verdict != Verdict::Done) {
        return Err(Failure::Left);
    }
    Ok(())
}

/// All addresses of the proxies. Empty if no name can be looked up for a while.
async fn addresses(proxies: &[Address]) -> Vec<ProxyAddress> {
    let began = Instant::now();
    loop {
        let mut addresses = Vec::new();
        for proxy in proxies {
            match ProxyAddress::of(proxy).await {
                Ok(found) => addresses.extend(found),
                Err(error) => warn!(%proxy, %error, "cannot look up the proxies' name"),
            }
        }
        addresses.sort_by_key(ToString::to_string);
        addresses.dedup_by_key(|address| address.to_string());
        if !addresses.is_empty() || began.elapsed() >= ABSENT {
            return addresses;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Asks one proxy again and again, until it is given up or the timeout is over.
async fn follow(
    address: &ProxyAddress,
    options: &Options,
    deadline: Instant,
    board: &Board,
    at: usize,
) {
    let mut patience = Patience::default();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        let reply = ask(address, options, left).await;
        let verdict = patience.judge(address, &reply, Instant::now());
        board.set(at, verdict);
        match verdict {
            Verdict::Done => tokio::time::sleep(RENEW).await,
            Verdict::Wait => tokio::time::sleep(PAUSE).await,
            Verdict::GiveUp => return,
        }
    }
}

/// The last verdict on each proxy.
#[derive(Debug)]
struct Board(RefCell<Vec<Verdict>>, Notify);

impl Board {
    fn new(proxies: usize) -> Self {
        Self(RefCell::new(vec![Verdict::Wait; proxies]), Notify::new())
    }

    fn set(&self, at: usize, verdict: Verdict) {
        self.0.borrow_mut()[at] = verdict;
        self.1.notify_one();
    }

    /// Completes when there is no proxy left to wait for.
    async fn all_settled(&self) {
        while self.0.borrow().contains(&Verdict::Wait) {
            self.1.notified().await;
        }
    }
}

/// The reply of one proxy.
#[derive(Debug)]
enum Reply {
    /// Nothing is bound to the backend.
    Drained,
    /// Something is still bound to the backend.
    Bound,
    /// The proxy refuses the request, with this text.
    Refused(String),
    /// The proxy does not answer.
    Absent(RequestError),
}

async fn ask(address: &ProxyAddress, options: &Options, timeout: Duration) -> Reply {
    let name = utf8_percent_encode(&options.name, NON_ALPHANUMERIC);
    let seconds = timeout.as_secs().max(1);
    let mut path = format!("/backends/{name}/drain?timeout={seconds}s");
    if let Some(address) = &options.address {
        path += &format!("&address={}", utf8_percent_encode(address, NON_ALPHANUMERIC));
    }
    // The files are read again for each request, because they may have changed.
    let credentials = match options.credentials.read_all() {
        Ok(credentials) => credentials,
        Err(error) => return Reply::Refused(error.to_string()),
    };
    let limit = timeout + SLACK;
    let question = Question { method: Method::POST, path: &path, limit, longest: MAX_ANSWER };
    match send(address, &question, &credentials).await {
        Ok((StatusCode::OK, text)) => {
            debug!(proxy = %address, text, "proxy has drained the backend");
            Reply::Drained
        }
        // The proxy does not know the backend, or no longer knows it.
        Ok((StatusCode::NOT_FOUND, _text)) => Reply::Drained,
        Ok((StatusCode::GATEWAY_TIMEOUT, text)) => {
            info!(proxy = %address, text, "proxy still has builds on the backend");
            Reply::Bound
        }
        Ok((status, text)) => Reply::Refused(format!("{status}: {text}")),
        Err(error) => Reply::Absent(error),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Done,
    Wait,
    GiveUp,
}

/// When a proxy first failed to do what it was asked. `None` if its last answer was good.
#[derive(Debug, Default)]
struct Patience(Option<Instant>);

impl Patience {
    fn judge(&mut self, address: &ProxyAddress, reply: &Reply, now: Instant) -> Verdict {
        let (bound, error) = match reply {
            Reply::Drained | Reply::Bound => {
                self.0 = None;
                let drained = matches!(reply, Reply::Drained);
                return if drained { Verdict::Done } else { Verdict::Wait };
            }
            Reply::Refused(text) => (REFUSING, text.clone()),
            Reply::Absent(error) => (ABSENT, chain(error)),
        };
        let first = self.0.is_none();
        let since = *self.0.get_or_insert(now);
        if now.saturating_duration_since(since) >= bound {
            warn!(proxy = %address, error, "proxy does not drain the backend, giving up");
            return Verdict::GiveUp;
        }
        if first {
            warn!(proxy = %address, error, "proxy does not drain the backend, trying again");
        }
        Verdict::Wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_that_refuses_is_given_more_time_than_one_that_is_away() {
        let address = ProxyAddress::Unix("/x".into());
        let now = Instant::now();
        let absent = Reply::Absent(RequestError::Timeout);
        let refused = Reply::Refused("401".to_owned());
        let mut patience = Patience::default();
        assert_eq!(patience.judge(&address, &absent, now), Verdict::Wait);
        assert_eq!(patience.judge(&address, &absent, now + ABSENT), Verdict::GiveUp);
        assert_eq!(patience.judge(&address, &refused, now + ABSENT), Verdict::Wait);
        assert_eq!(patience.judge(&address, &refused, now + REFUSING), Verdict::GiveUp);
        assert_eq!(patience.judge(&address, &Reply::Bound, now), Verdict::Wait);
        let later = now + REFUSING * 2;
        assert_eq!(patience.judge(&address, &absent, later), Verdict::Wait, "it had answered");
        assert_eq!(patience.judge(&address, &Reply::Drained, later), Verdict::Done);
    }
}
