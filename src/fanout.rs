//! The fleet's RPCs: asked of every backend, and merged into the one answer a client expects.
//!
//! Messages are merged as the bytes they came in, no faster than the client reads them. A backend that
//! does not answer is left out and logged; only when none answers is the call an error.

mod ask;
mod capability_query;
mod charge;
mod content;
mod first;
mod history;
mod merge;
mod prune;
mod reply;
mod trace;
mod usage;

use std::time::Duration;

pub use self::{
    content::{by_digest as content_by_digest, list as content_list},
    first::first_answer,
    history::{listen as listen_history, locate, update as update_history},
    prune::prune,
    trace::export as export_trace,
    usage::disk_usage,
};

/// How long one daemon may take for its part of an answer that does not change anything.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
