//! A real Prometheus scrapes the proxy, understands every metric, and answers every query of the dashboard and the
//! alerts.

mod alerts;
mod faults;
mod panels;
mod server;
#[path = "../support/mod.rs"]
mod support;

/// The chart, which has the dashboard and the alerts.
const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/chart");
