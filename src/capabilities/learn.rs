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

/// The longest answer in bytes that is remembered. BuildKit's answers have 3 KiB; one with hundreds of platforms
/// has more.
const MAX_ANSWER_LEN: usize = 64 << 10;

/// A `ReturnRequest` with an empty result (field 1). A daemon may crash if there is no result.
const EMPTY_RESULT: Bytes = Bytes::from_static(&[0, 0, 0, 0, 2, 0x0a, 0]);

/// Why a daemon's answers are not known.
#[derive(Debug, thiserror::Error)]
pub enum LearnError {
    /// The daemon did not answer.
    #[error("no answer: {0}")]
    Unanswered(String),
    /// The daemon refused the call.
    #[error("ended with {}", code_name(*.0))]
    Refused(Code),
    /// The answer contains no message.
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

/// Asks the daemon of `version` that `link` leads to.
///
/// A daemon answers a Ping only in a build. So this starts one, marked as internal like the probes of buildx: it
/// builds nothing, takes some milliseconds, and leaves no record.
///
/// # Errors
/// An answer is missing, or is not a message.
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

/// The message with which the daemon answers `message`.
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

/// Checks that the headers or trailers of a daemon say OK. Headers may leave the status out (`silent`).
fn accept(headers: &HeaderMap, silent: bool) -> Result<(), LearnError> {
    match status_code(headers) {
        Some(Code::Ok) => Ok(()),
        None if silent => Ok(()),
        code => Err(LearnError::Refused(code.unwrap_or(Code::Unknown))),
    }
}
