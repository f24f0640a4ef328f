//! Asks a daemon what clients will ask.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body_util::BodyExt as _;
use tonic::Code;

use super::Answers;
use crate::{
    error::{chain, status_code},
    fleet::Version,
    metrics::code_name,
    received::Received,
    relay::{Body, ResetError},
    upstream::{Link, SendError},
    wire::{self, EMPTY_MESSAGE, MessageDecoder, WireError, control::SolveRequest, pong::Features},
};

/// The longest answer that is remembered. BuildKit's have 3 KiB; one with hundreds of platforms has more.
const MAX_ANSWER_LEN: usize = 64 << 10;

/// A `ReturnRequest` whose result (field 1) is an empty one. A daemon may not survive one without.
const EMPTY_RESULT: Bytes = Bytes::from_static(&[0, 0, 0, 0, 2, 0x0a, 0]);

/// Why nothing was learnt.
#[derive(Debug, thiserror::Error)]
pub enum LearnError {
    /// No answer came.
    #[error("no answer: {0}")]
    Unanswered(String),
    /// The daemon refuses the call.
    #[error("ended with {}", code_name(*.0))]
    Refused(Code),
    /// It has no message.
    #[error("answer cannot be read")]
    Wire(#[from] WireError),
}

impl From<SendError> for LearnError {
    fn from(error: SendError) -> Self {
        Self::Unanswered(match error {
            SendError::Proxy(error) => error.to_string(),
            SendError::Reset(error) => chain(&error),
            SendError::Cancelled => chain(&ResetError::cancel()),
        })
    }
}

/// Asks the daemon that `link` leads to, which has `version`.
///
/// A daemon answers a Ping in a build only. The one that this makes is marked as internal, as the probes of
/// buildx are: it builds nothing, takes a few milliseconds and leaves no record.
///
/// # Errors
/// It answers one of the questions otherwise than with a message.
pub async fn learn(link: &Link, version: Version) -> Result<Answers, LearnError> {
    let info = ask(link, "Control/Info", None, EMPTY_MESSAGE).await?;
    let workers = ask(link, "Control/ListWorkers", None, EMPTY_MESSAGE).await?;
    let build = format!("buildkit-lb-{:032x}", rand::random::<u128>());
    let solve = SolveRequest { r#ref: build.clone().into(), internal: true, ..Default::default() };
    let solve = ask(link, "Control/Solve", None, wire::encode(&solve));
    let pong = async {
        let pong = ask(link, "frontend.LLBBridge/Ping", Some(&build), EMPTY_MESSAGE).await?;
        ask(link, "frontend.LLBBridge/Return", Some(&build), EMPTY_RESULT).await?;
        Ok(pong)
    };
    let (_solved, pong) = tokio::try_join!(solve, pong)?;
    let features = Features::read(&pong)?;
    Ok(Answers { version, info, workers, pong, features })
}

/// The message by which the daemon answers `message`.
async fn ask(
    link: &Link,
    method: &str,
    build: Option<&str>,
    message: Bytes,
) -> Result<Bytes, LearnError> {
    let mut request = Request::post(format!("/moby.buildkit.v1.{method}"));
    if let Some(build) = build {
        request = request.header("buildkit-controlapi-buildid", build);
    }
    let request = request.header("te", "trailers").body(Body::whole(message));
    let mut request = request.map_err(|error| LearnError::Unanswered(chain(&error)))?;
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    answer(link.send(Box::new(request)).await?).await
}

async fn answer(response: Response<Received>) -> Result<Bytes, LearnError> {
    accept(response.headers(), true)?;
    let mut body = response.into_body();
    let mut messages = MessageDecoder::new(MAX_ANSWER_LEN);
    let mut message = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| LearnError::Unanswered(chain(&error)))?;
        match frame.into_data() {
            Ok(data) if message.is_none() => {
                messages.push(&data);
                message = messages.next_message()?;
            }
            Ok(_more) => {}
            Err(frame) => accept(&frame.into_trailers().unwrap_or_default(), false)?,
        }
    }
    message.ok_or(LearnError::Wire(WireError::Truncated { got: 0 }))
}

/// Whether a daemon's headers or trailers say that all is well; headers need not say so.
fn accept(headers: &HeaderMap, silent: bool) -> Result<(), LearnError> {
    match status_code(headers) {
        Some(Code::Ok) => Ok(()),
        None if silent => Ok(()),
        code => Err(LearnError::Refused(code.unwrap_or(Code::Unknown))),
    }
}
