//! The `buildkit-lb` command.

fn main() {}
