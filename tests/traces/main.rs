//! The proxy's own spans, as a real collector gets them beside those of a real client and a real daemon.

mod builds;
mod collector;
mod outages;
#[path = "../support/mod.rs"]
mod support;
