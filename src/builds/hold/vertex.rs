//! The step in BuildKit's progress format that shows a client that its build waits.

use std::{fmt, time::SystemTime};

use bytes::Bytes;
use ring::digest::{SHA256, digest};

use crate::{
    ids::Id,
    wire::{
        self,
        control::{self, StatusResponse, VertexLog},
    },
};

/// The name of the step. The bracketed prefix distinguishes it from the steps of a Dockerfile.
const NAME: &str = "[internal] waiting for a builder";

/// The number of standard output in a step's log.
const STDOUT: i64 = 1;

/// The step of one build.
///
/// The whole step is sent when it starts and when it completes. In between only log lines are sent, because a client
/// prints a step again whenever it is sent. The step never fails and is never cached, since a client would show either.
#[derive(Debug)]
pub(super) struct Vertex {
    digest: String,
    started: SystemTime,
}

impl Vertex {
    /// The step of `build`, which has waited since `started`.
    ///
    /// Each build has a digest of its own, because a client takes two steps with one digest for the same step.
    pub(super) fn new(build: &Id, started: SystemTime) -> Self {
        let hash = digest(&SHA256, build.as_bytes());
        let digest = hash
            .as_ref()
            .iter()
            .fold("sha256:".to_owned(), |digest, byte| digest + &format!("{byte:02x}"));
        Self { digest, started }
    }

    /// The message that starts the step with `line` as its first log line.
    pub(super) fn start(&self, line: &str, now: SystemTime) -> Bytes {
        let vertexes = vec![self.vertex(None)];
        wire::encode(&StatusResponse { vertexes, logs: vec![self.log(line, now)] })
    }

    /// The message that adds `line` to the log of the step.
    pub(super) fn log_line(&self, line: &str, now: SystemTime) -> Bytes {
        wire::encode(&StatusResponse { vertexes: Vec::new(), logs: vec![self.log(line, now)] })
    }

    /// The message that completes the step.
    pub(super) fn complete(&self, now: SystemTime) -> Bytes {
        let vertexes = vec![self.vertex(Some(now.max(self.started)))];
        wire::encode(&StatusResponse { vertexes, logs: Vec::new() })
    }

    fn vertex(&self, completed: Option<SystemTime>) -> control::Vertex {
        control::Vertex {
            digest: self.digest.clone(),
            name: NAME.to_owned(),
            started: Some(self.started.into()),
            completed: completed.map(Into::into),
        }
    }

    fn log(&self, line: &str, now: SystemTime) -> VertexLog {
        VertexLog {
            vertex: self.digest.clone(),
            timestamp: Some(now.into()),
            stream: STDOUT,
            msg: format!("{line}\n").into(),
        }
    }
}

/// A position in a queue as people say it: 1st, 2nd, 3rd, 11th.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ordinal(pub(super) usize);

impl fmt::Display for Ordinal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ending = match (self.0 % 100, self.0 % 10) {
            (11..=13, _) => "th",
            (_, 1) => "st",
            (_, 2) => "nd",
            (_, 3) => "rd",
            _ => "th",
        };
        write!(f, "{}{ending}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn vertex(build: &str) -> Vertex {
        let id = Id::new(build.as_bytes(), None).expect("valid");
        Vertex::new(&id, SystemTime::UNIX_EPOCH + Duration::from_secs(10))
    }

    fn decoded(message: &Bytes) -> StatusResponse {
        wire::decode(message).expect("valid")
    }

    #[test]
    fn the_digest_is_the_sha256_of_the_ref() {
        // The output of `printf abc | sha256sum`.
        let abc = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(vertex("abc").digest, abc);
        assert_ne!(vertex("abd").digest, abc);
    }

    #[test]
    fn a_step_starts_once_and_completes_once() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(12);
        let vertex = vertex("abc");
        let [start, line, end] =
            [vertex.start("one", now), vertex.log_line("two", now), vertex.complete(now)];
        let (start, line, end) = (decoded(&start), decoded(&line), decoded(&end));
        assert_eq!((start.vertexes.len(), line.vertexes.len(), end.vertexes.len()), (1, 0, 1));
        assert_eq!(start.vertexes[0].completed, None);
        assert_eq!(end.vertexes[0].completed, Some(now.into()));
        assert_eq!(end.vertexes[0].started, start.vertexes[0].started);
        let lines = |message: &StatusResponse| {
            message.logs.iter().map(|log| (log.vertex.clone(), log.msg.clone())).collect::<Vec<_>>()
        };
        assert_eq!(lines(&start), [(vertex.digest.clone(), Bytes::from("one\n"))]);
        assert_eq!(lines(&line), [(vertex.digest.clone(), Bytes::from("two\n"))]);
        assert_eq!(lines(&end), []);
    }

    #[test]
    fn a_step_never_ends_before_it_starts() {
        let end = decoded(&vertex("abc").complete(SystemTime::UNIX_EPOCH));
        assert_eq!(end.vertexes[0].completed, end.vertexes[0].started);
    }

    #[test]
    fn positions_are_shown_as_people_say_them() {
        let shown =
            [1, 2, 3, 4, 11, 12, 13, 21, 111, 1002].map(|position| Ordinal(position).to_string());
        let expected =
            ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "111th", "1002nd"];
        assert_eq!(shown, expected);
    }
}
