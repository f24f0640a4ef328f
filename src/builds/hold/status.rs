//! A Status that waits: it shows the client that its build is queued.

use std::{
    convert::Infallible,
    future::pending,
    pin::pin,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderValue, request::Parts};
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    Queued, answer,
    vertex::{Ordinal, Vertex},
};
use crate::{
    builds::{join, park, parked::ParkedBytes, refuse},
    call::CallResult,
    client::Client,
    directory::Waiting,
    error::{ProxyError, ok_response},
    first_message::FirstMessage,
    ids::{Id, TraceId},
    proxy::Proxy,
    received::Received,
    relay::MessageSender,
};

/// The header in which a daemon tells its clock.
const TIMESTAMP_HEADER: &str = "buildkit-current-timestamp";

/// How often an unchanged position is sent again.
const REPEAT_INTERVAL: Duration = Duration::from_secs(30);

/// The shortest time between two messages. If many builds wait, every position changes with each build that starts.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// A Status whose build waits.
#[derive(Debug)]
pub(in crate::builds) struct Status {
    pub(in crate::builds) proxy: Proxy,
    pub(in crate::builds) client: Client,
    pub(in crate::builds) trace: Option<TraceId>,
    pub(in crate::builds) build: Id,
    pub(in crate::builds) parts: Parts,
    pub(in crate::builds) message: FirstMessage,
    pub(in crate::builds) rest: Received,
    pub(in crate::builds) kept: ParkedBytes,
}

impl Status {
    /// Holds the Status as long as `queued` is open.
    ///
    /// # Errors
    /// There is no room for the metadata of the call.
    pub(in crate::builds) fn hold(mut self, queued: Queued) -> CallResult {
        self.kept.charge_metadata(&self.parts.headers)?;
        let proxy = self.proxy.clone();
        let mut response = answer(&proxy, Bytes::new(), |sender| self.go_on(queued, sender));
        let now = humantime::format_rfc3339_nanos(SystemTime::now()).to_string();
        if let Ok(now) = HeaderValue::try_from(now) {
            response.headers_mut().insert(TIMESTAMP_HEADER, now);
        }
        Ok(response)
    }

    async fn go_on(self, queued: Queued, sender: MessageSender) -> CallResult {
        let Self { proxy, client, trace, build, parts, mut message, mut rest, mut kept } = self;
        // The Solve has come. If it ends neither placed nor refused, the client has given it up.
        let shown = proxy.placement.queue().progress;
        let mut progress =
            Progress { pool: proxy.metrics.pool(), build: &build, sender: &sender, vertex: None };
        let link = {
            let link = pin!(park(&proxy, &client, trace, &build, Duration::ZERO));
            let link = pin!(async { message.during(link).await? });
            tokio::select! {
                biased;
                link = kept.during(&mut rest, link) => link,
                never = progress.send_updates(queued), if shown => match never {},
            }
        };
        progress.complete().await;
        let (link, byte_counts) = match link {
            Ok(found) => found,
            Err(ProxyError::UnknownBuild(_)) => return Ok(ok_response()),
            Err(error) => return refuse::status(error),
        };
        let read = [message.into_bytes(), kept.into_bytes()];
        join(&proxy, &link, byte_counts, (parts, rest), read).await
    }
}

/// The step that shows the wait of one build.
struct Progress<'a> {
    pool: &'a str,
    build: &'a Id,
    sender: &'a MessageSender,
    /// The step, once it has started.
    vertex: Option<Vertex>,
}

impl Progress<'_> {
    /// Sends what the build waits for, at each change and from time to time.
    async fn send_updates(&mut self, mut queued: Queued) -> Infallible {
        let (mut last, mut again) = (String::new(), Instant::now());
        loop {
            let waiting = queued.borrow_and_update().clone();
            if let Some(waiting) = waiting {
                let line = self.line(&waiting);
                if line != last || again <= Instant::now() {
                    self.send_line(&line, waiting.since).await;
                    (last, again) = (line, Instant::now() + REPEAT_INTERVAL);
                }
            }
            sleep(MIN_INTERVAL).await;
            tokio::select! {
                changed = queued.changed() => if changed.is_err() {
                    // The channel has closed, so the call itself is about to continue.
                    pending::<()>().await;
                },
                () = sleep_until(again) => {}
            }
        }
    }

    fn line(&self, waiting: &Waiting) -> String {
        let Waiting { position, cause, .. } = waiting;
        format!("{} in the queue of pool {}; {cause}", Ordinal(*position), self.pool)
    }

    /// Sends `line`; the first line starts the step. A client that does not read misses some lines.
    async fn send_line(&mut self, line: &str, since: SystemTime) {
        let now = SystemTime::now();
        match &self.vertex {
            Some(vertex) => {
                self.sender.try_send(vertex.log_line(line, now));
            }
            None => {
                let vertex = self.vertex.insert(Vertex::new(self.build, since));
                self.sender.send(vertex.start(line, now)).await;
            }
        }
    }

    /// Completes the step, if it has started.
    async fn complete(self) {
        if let Some(vertex) = &self.vertex {
            self.sender.send(vertex.complete(SystemTime::now())).await;
        }
    }
}
