//! The `buildkit-lb` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    buildkit_lb::cli::run()
}
