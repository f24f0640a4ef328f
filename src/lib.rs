//! buildkit-lb: a gRPC load balancer in front of a fleet of buildkitd daemons.
//!
//! This list has the modules in the order in which a byte passes them. A module may use only modules that stand after it;
//! a test, `tests/layout.rs`, compares the code with the list:
//!
//! - [`cli`] is the command line. [`check`] looks at a live set-up, [`explain`] and [`explain_access`] say what the proxy would decide, [`commands`] shows
//!   and changes a running proxy, and [`drain_client`] drains a daemon at all proxies. Both ask by way of
//!   [`admin_client`].
//! - [`app`] is the composition root. [`admin`] serves metrics, status and a page, [`scaler`] tells KEDA how many builds there
//!   are, [`pool`] is the composition root of one pool, and [`config`] has the settings.
//! - [`listener`] admits clients, and [`connection`] serves one HTTP/2 connection.
//! - [`router`] finds the route of a call from its path and metadata.
//! - [`builds`] reads each Solve, binds its build, and parks the siblings.
//! - [`fanout`] asks every daemon and merges the answers.
//! - [`proxy`] is what all streams share: the [`running`] builds, the connections that are their [`carriers`], their
//!   [`ownership`], and the [`refusals`]. [`parking`] holds calls until their build is bound, [`placement`] decides where a
//!   build goes, and [`directory`] finds the binding of a session or build.
//! - [`call`] is one call and its result.
//! - Beside the path, [`health`] probes backends, [`figures`] reads how many of their steps were cached, and
//!   [`annotations`] tells Kubernetes which pods have builds.
//! - [`capabilities`] remembers what daemons can do.
//! - [`upstream`] is one connection to a daemon, and [`relay`] copies bodies unread.
//! - [`discovery`] finds the backends and is the only writer of the [`fleet`], which has the live ones.
//! - [`affinity`] makes the key under which a build finds its cache.
//! - [`policy`] chooses the backend of a build.
//!
//! Leaves may be used by every module, and use only each other: [`acceptor`], [`access`], [`account`], [`activity`],
//! [`address`], [`client`], [`connection_limit`], [`connection_table`], [`descriptors`], [`error`], [`first_message`],
//! [`gate`], [`http1`], [`http2_limits`], [`identity`], [`ids`], [`io`], [`kubernetes`], [`label`], [`map`],
//! [`metrics`], [`networks`], [`opening`], [`outage`], [`received`], [`regular_file`], [`rules`], [`shares`],
//! [`shutdown`], [`snapshot`], [`telemetry`], [`terminal`], [`tls`], [`token`], [`traces`], [`wire`].

// These macros panic if the reader of the output is gone.
#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod acceptor;
pub mod access;
pub mod account;
pub mod activity;
pub mod address;
pub mod admin;
pub mod admin_client;
pub mod affinity;
pub mod annotations;
pub mod app;
pub mod builds;
pub mod call;
pub mod capabilities;
pub mod carriers;
pub mod check;
pub mod cli;
pub mod client;
pub mod commands;
pub mod config;
pub mod connection;
pub mod connection_limit;
pub mod connection_table;
pub mod descriptors;
pub mod directory;
pub mod discovery;
pub mod drain_client;
pub mod error;
pub mod explain;
pub mod explain_access;
pub mod fanout;
pub mod figures;
pub mod first_message;
pub mod fleet;
pub mod gate;
pub mod health;
pub mod http1;
pub mod http2_limits;
pub mod identity;
pub mod ids;
pub mod io;
pub mod kubernetes;
pub mod label;
pub mod listener;
pub mod map;
pub mod metrics;
pub mod networks;
pub mod opening;
pub mod outage;
pub mod ownership;
pub mod parking;
pub mod placement;
pub mod policy;
pub mod pool;
pub mod proxy;
pub mod received;
pub mod refusals;
pub mod regular_file;
pub mod relay;
pub mod router;
pub mod rules;
pub mod running;
pub mod scaler;
pub mod shares;
pub mod shutdown;
pub mod snapshot;
pub mod telemetry;
pub mod terminal;
pub mod tls;
pub mod token;
pub mod traces;
pub mod upstream;
pub mod wire;
