use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tower_test::mock::{self, SendResponse};

use super::*;
use crate::{
    discovery::{Discovery, SourceStatus},
    fleet::Fleet,
    metrics::Metrics,
};

/// What the test answers.
type Answer = Response<UnsyncBoxBody<Bytes, std::convert::Infallible>>;

fn whole(code: u16, body: &Value) -> Answer {
    let body = Full::from(body.to_string()).boxed_unsync();
    Response::builder().status(code).body(body).expect("valid")
}

/// An API server played by the test, and the discovery that asks it.
struct Api {
    requests: mock::Handle<Request<Body>, Answer>,
    fleet: Arc<Fleet>,
    discovery: Arc<Discovery>,
    _task: JoinHandle<()>,
}

impl Api {
    #[allow(clippy::disallowed_methods, reason = "the task ends with the test's runtime")]
    fn start() -> Self {
        let (service, requests) = mock::pair();
        let metrics = Arc::new(Metrics::default());
        let fleet = Arc::new(Fleet::new(Arc::clone(&metrics)));
        let discovery = Discovery::new(Arc::clone(&fleet), metrics, None);
        let target: Service = "ci/buildkitd".parse().expect("valid");
        let source = discovery.source(&"test");
        let client = Client::new(service, "ci");
        let run = run(client, target, false, source, CancellationToken::new());
        Self { requests, fleet, discovery, _task: tokio::spawn(run) }
    }

    /// The next request's path and query, and where its answer goes.
    async fn request(&mut self) -> (String, SendResponse<Answer>) {
        let (request, answer) = self.requests.next_request().await.expect("a request");
        (request.uri().to_string(), answer)
    }

    async fn answer(&mut self, part: &str, code: u16, body: &Value) {
        let (uri, answer) = self.request().await;
        assert!(uri.contains(part), "{uri}");
        answer.send_response(whole(code, body));
    }

    fn names(&self) -> Vec<String> {
        self.fleet.backends().iter().map(|backend| backend.name().to_owned()).collect()
    }

    fn status(&self) -> SourceStatus {
        self.discovery.statuses().remove(0)
    }

    /// Lets discovery work until `done`; time is the test's own.
    async fn until(&self, done: impl Fn(&Self) -> bool) {
        let limit = Duration::from_secs(60);
        let look = async {
            while !done(self) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(limit, look).await.expect("in time");
    }
}

fn slice(name: &str, pods: &[&str]) -> Value {
    let endpoints = pods.iter().map(|pod| {
        let last = pod.bytes().last().expect("a name");
        json!({"addresses": [format!("10.0.0.{last}")], "targetRef": {"kind": "Pod", "name": pod}})
    });
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "namespace": "ci", "resourceVersion": "5"},
        "ports": [{"name": "buildkit", "port": 1234}],
        "endpoints": endpoints.collect::<Vec<_>>(),
    })
}

fn list(slices: &[Value]) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList",
        "metadata": {"resourceVersion": "7"}, "items": slices,
    })
}

fn refusal(code: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code,
        "message": "no", "reason": "Some",
    })
}

/// A body for a watch, to which the test adds events.
fn watch() -> (tokio::sync::mpsc::Sender<Value>, Answer) {
    let (events, receiver) = tokio::sync::mpsc::channel::<Value>(8);
    let frames = futures_util::stream::unfold(receiver, |mut receiver| async {
        let event = receiver.recv().await?;
        let line = format!("{event}\n").into_bytes();
        let frame = Frame::data(Bytes::from(line));
        Some((Ok::<_, std::convert::Infallible>(frame), receiver))
    });
    (events, Response::new(StreamBody::new(frames).boxed_unsync()))
}

#[tokio::test(start_paused = true)]
async fn changes_are_followed_and_several_become_one() {
    let mut api = Api::start();
    api.answer(
        "labelSelector=kubernetes.io%2Fservice-name%3Dbuildkitd",
        200,
        &list(&[slice("s", &["a"])]),
    )
    .await;
    let (_uri, answer) = api.request().await;
    let (events, response) = watch();
    answer.send_response(response);
    api.until(|api| api.names() == ["a"]).await;
    for event in [
        json!({"type": "ADDED", "object": slice("t", &["b", "c"])}),
        json!({"type": "MODIFIED", "object": slice("s", &["a", "d"])}),
        json!({"type": "DELETED", "object": slice("t", &[])}),
    ] {
        events.send(event).await.expect("taken");
    }
    api.until(|api| api.names() == ["a", "d"]).await;
    assert!(api.status().synced.is_some() && api.status().error.is_none());
}

#[tokio::test(start_paused = true)]
async fn the_last_fleet_stays_while_the_api_server_is_away() {
    let mut api = Api::start();
    api.answer("limit", 200, &list(&[slice("s", &["a", "b"])])).await;
    api.answer("watch=true", 500, &refusal(500)).await;
    api.until(|api| api.status().error.is_some()).await;
    for _ in 0..3 {
        api.answer("limit", 503, &refusal(503)).await;
    }
    api.until(|api| api.status().error.is_some_and(|error| error.text.contains("list"))).await;
    assert_eq!(api.names(), ["a", "b"]);
    assert!(api.status().error.expect("error").stale);
    api.answer("limit", 200, &list(&[slice("s", &["b", "c"])])).await;
    api.until(|api| api.names() == ["b", "c"]).await;
    assert!(api.status().error.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_expired_is_begun_anew_and_loses_nothing() {
    let mut api = Api::start();
    api.answer("limit", 200, &list(&[slice("s", &["a"])])).await;
    let (_uri, answer) = api.request().await;
    let (events, response) = watch();
    answer.send_response(response);
    api.until(|api| api.names() == ["a"]).await;
    events.send(json!({"type": "ERROR", "object": refusal(410)})).await.expect("taken");
    let (uri, answer) = api.request().await;
    assert!(uri.contains("limit") && !uri.contains("watch=true"), "{uri}");
    assert_eq!(api.names(), ["a"]);
    assert!(api.status().error.is_none(), "that is no error");
    answer.send_response(whole(200, &list(&[slice("s", &["b"])])));
    api.until(|api| api.names() == ["b"]).await;
}

#[tokio::test(start_paused = true)]
async fn what_must_be_granted_is_named() {
    let mut api = Api::start();
    api.answer("limit", 403, &refusal(403)).await;
    api.until(|api| api.status().error.is_some()).await;
    let expected = "cannot list endpointslices.discovery.k8s.io in namespace ci: \
                    grant verbs get, list, watch";
    assert_eq!(api.status().error.expect("error").text, expected);
    api.answer("limit", 200, &list(&[slice("s", &["a"])])).await;
    api.until(|api| api.names() == ["a"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_not_there_is_waited_for() {
    let mut api = Api::start();
    api.answer("limit", 200, &list(&[])).await;
    api.until(|api| api.status().error.is_some()).await;
    let error = api.status().error.expect("error");
    assert!(!error.stale && error.text.contains("no endpoint slices of a service buildkitd"));
    let (_uri, answer) = api.request().await;
    let (events, response) = watch();
    answer.send_response(response);
    let event = json!({"type": "ADDED", "object": slice("s", &["a"])});
    events.send(event).await.expect("taken");
    api.until(|api| api.names() == ["a"] && api.status().error.is_none()).await;
}
