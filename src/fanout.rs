//! The calls that concern the whole fleet: every backend is asked, and the replies are merged into the one answer that
//! a client expects.
//!
//! Messages are merged as the bytes in which they came, no faster than the client reads them. A backend that does not
//! answer is left out and logged. The call is an error only if no backend answers.

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

/// How long one daemon may take for its reply to a call that changes nothing.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
