//! The `buildkit-lb` command.

use std::process::ExitCode;

/// mimalloc returns memory to the system after a peak; the C library's allocator keeps large pieces for its threads.
/// Huge pages are off, because they would double the memory of an idle session.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    buildkit_lb::cli::run()
}
