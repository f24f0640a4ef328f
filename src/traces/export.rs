//! The queue of spans that have ended, and the task that sends them to the collector.
//!
//! No build waits for the collector: if the queue is full, a span is dropped and counted.

use std::{sync::Arc, time::Duration};

use opentelemetry::Context;
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{self, SpanData, SpanExporter as _, SpanProcessor},
};
use tokio::{sync::mpsc, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    metrics::{Families, SpanResult},
    outage::Outage,
};

/// The most spans that wait to be exported, as many as OpenTelemetry's own default. A span takes about a KiB.
const QUEUE: usize = 2048;

/// The most spans in one request. A collector takes 4 MiB at once, and a span with the longest ref and key has less than
/// 8 KiB.
const BATCH: usize = 512;

/// How long the first span of a request waits for others. The spans of a build end at about the same time.
const DELAY: Duration = Duration::from_millis(200);

/// Where spans go when they end.
#[derive(Debug)]
pub(super) struct Queue {
    spans: mpsc::Sender<SpanData>,
    families: Arc<Families>,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _span: &mut trace::Span, _context: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.spans.try_send(span).is_err() {
            self.families.count_spans(SpanResult::Dropped, 1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Takes spans out of the queue and exports them.
#[derive(Debug)]
pub(super) struct Exports {
    spans: mpsc::Receiver<SpanData>,
    families: Arc<Families>,
    outage: Outage,
}

impl Exports {
    /// An empty queue, and what empties it.
    pub(super) fn new(families: &Arc<Families>) -> (Queue, Self) {
        let (sender, spans) = mpsc::channel(QUEUE);
        let queue = Queue { spans: sender, families: Arc::clone(families) };
        (queue, Self { spans, families: Arc::clone(families), outage: Outage::default() })
    }

    /// Exports until `closing`, and then what is left.
    pub(super) async fn run(mut self, exporter: SpanExporter, closing: CancellationToken) {
        loop {
            let batch = self.batch(&closing).await;
            if batch.is_empty() {
                return;
            }
            let pause = self.export(&exporter, batch).await;
            tokio::select! {
                () = closing.cancelled() => {}
                () = sleep(pause) => {}
            }
        }
    }

    /// The next spans. Empty if the queue is closed and has been emptied.
    async fn batch(&mut self, closing: &CancellationToken) -> Vec<SpanData> {
        let mut batch = Vec::new();
        tokio::select! {
            biased;
            () = closing.cancelled() => self.spans.close(),
            _ = self.spans.recv_many(&mut batch, 1) => {}
        }
        if self.spans.len() < BATCH {
            tokio::select! {
                () = closing.cancelled() => {}
                () = sleep(DELAY) => {}
            }
        }
        while batch.len() < BATCH
            && let Ok(span) = self.spans.try_recv()
        {
            batch.push(span);
        }
        batch
    }

    /// Exports `batch` and counts it. Returns how long to wait before the next one.
    async fn export(&mut self, exporter: &SpanExporter, batch: Vec<SpanData>) -> Duration {
        let count = batch.len();
        match exporter.export(batch).await {
            Ok(()) => {
                self.families.count_spans(SpanResult::Exported, count);
                if self.outage.over() {
                    info!("spans are exported again");
                }
                Duration::ZERO
            }
            Err(error) => {
                self.families.count_spans(SpanResult::Failed, count);
                // One record for each outage, although its errors may differ.
                if self.outage.failed("") {
                    warn!(%error, "cannot export spans");
                }
                self.outage.wait()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{Tracer as _, TracerProvider as _};
    use opentelemetry_sdk::trace::SdkTracerProvider;

    use super::*;

    #[test]
    fn spans_that_come_while_the_queue_is_full_are_dropped_and_counted() {
        let families = Families::new();
        let (queue, mut exports) = Exports::new(&families);
        let provider = SdkTracerProvider::builder().with_span_processor(queue).build();
        let tracer = provider.tracer("test");
        let spans = |count| (0..count).for_each(|_| drop(tracer.start("span")));
        let dropped = || {
            let text = families.render();
            let line = text.lines().find(|line| line.contains("result=\"dropped\""));
            line.and_then(|line| line.rsplit(' ').next()?.parse::<u32>().ok())
        };
        spans(QUEUE);
        assert_eq!(dropped(), Some(0));
        spans(3);
        assert_eq!(dropped(), Some(3));
        assert!(exports.spans.try_recv().is_ok());
        spans(1);
        assert_eq!(dropped(), Some(3), "there is room again");
    }
}
