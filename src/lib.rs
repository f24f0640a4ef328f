//! buildkit-lb: a gRPC load balancer in front of a fleet of buildkitd daemons.
//!
//! The modules, in the order a byte travels. A module may use only those that stand after it; a test,
//! `tests/layout.rs`, holds the code to this list:
//!
//! - [`cli`] command line, [`explain`] and [`explain_access`] what the proxy would decide, [`drain_client`] drains a daemon at
//!   all proxies
//! - [`app`] the composition root, [`admin`] metrics and status, [`scaler`] tells KEDA how many builds there
//!   are, [`pool`] the composition root of one pool; [`config`] settings
//! - [`listener`] accepts, [`connection`] serves one HTTP/2 client link
//! - [`router`] path and metadata to a route
//! - [`builds`] reads each Solve, binds its build, parks the siblings
//! - [`fanout`] the fleet's RPCs: ask every daemon, merge
//! - [`proxy`] what all streams share: the [`running`] builds, which connections are their [`carriers`], whose they
//!   are ([`ownership`]), the [`refusals`]; [`parking`] where calls wait for their build, [`placement`] where a build goes,
//!   [`directory`] session or build -> binding
//! - [`call`] one call and what becomes of it
//! - beside the path: [`health`] probes, [`annotations`] tells Kubernetes which pods build
//! - [`capabilities`] what daemons have said they can do
//! - [`upstream`] one connection to a daemon; [`relay`] copies bodies unread
//! - [`discovery`] finds the backends, and writes the fleet alone; [`fleet`] the live ones
//! - [`affinity`] what a build's cache is known by
//! - [`policy`] which backend takes a build
//!
//! Leaves, which anyone may use and which use no one but each other: [`acceptor`], [`access`], [`account`], [`activity`],
//! [`address`], [`client`], [`connection_limit`], [`connection_table`], [`descriptors`], [`error`], [`first_message`],
//! [`http2_limits`], [`identity`], [`ids`], [`io`], [`kubernetes`], [`label`], [`metrics`], [`networks`],
//! [`opening`], [`outage`], [`received`], [`regular_file`], [`rules`], [`shares`], [`shutdown`], [`telemetry`], [`tls`], [`token`],
//! [`wire`].

// These macros panic if the reader of the output is gone.
#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod acceptor;
pub mod access;
pub mod account;
pub mod activity;
pub mod address;
pub mod admin;
pub mod affinity;
pub mod annotations;
pub mod app;
pub mod builds;
pub mod call;
pub mod capabilities;
pub mod carriers;
pub mod cli;
pub mod client;
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
pub mod first_message;
pub mod fleet;
pub mod health;
pub mod http2_limits;
pub mod identity;
pub mod ids;
pub mod io;
pub mod kubernetes;
pub mod label;
pub mod listener;
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
pub mod telemetry;
pub mod tls;
pub mod token;
pub mod upstream;
pub mod wire;
