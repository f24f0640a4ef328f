//! buildkit-lb: a gRPC load balancer in front of a fleet of buildkitd daemons.

pub mod address;
pub mod error;
pub mod http2_limits;
pub mod ids;
pub mod io;
pub mod metrics;
pub mod shutdown;
pub mod telemetry;
pub mod wire;
pub mod fleet;
pub mod policy;
pub mod relay;
pub mod upstream;
pub mod health;
pub mod directory;
pub mod first_message;
pub mod proxy;
pub mod fanout;
