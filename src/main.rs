//! The `buildkit-lb` command.

use std::process::ExitCode;

/// Gives memory back after a peak: the C library's keeps what threads took for large pieces. Without huge
/// pages, which would double the memory of an idle session.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    buildkit_lb::cli::run()
}
