//! The command line.

mod generate;

use std::{
    error::Error,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use tokio::runtime::Runtime;

use crate::{
    app::App,
    check, commands,
    config::{Config, Given},
    drain_client,
    error::Chain,
    explain::{Parameters, explain},
    explain_access::{self, explain_access},
    io::moderation,
    shutdown::Signals,
    telemetry::{Log, LogFormat, LogLevel},
};

/// The configuration or the command line is wrong (sysexits.h, EX_USAGE).
const EXIT_USAGE: u8 = 64;

const EXIT_CODES: &str = "Exit codes:
  0   the command did what it was asked
  1   the command failed; standard error has one line with the cause
  64  the command line or the configuration is wrong";

/// A gRPC load balancer that understands BuildKit: one address in front of a fleet of buildkitd daemons.
#[derive(Debug, Parser)]
#[command(version, about, after_long_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy.
    Serve(Options),
    /// Check the configuration and print every problem in it.
    CheckConfig(Options),
    /// Look at the live set-up of a configuration: ports, certificates, sources, rights and daemons.
    Check(CheckOptions),
    /// Print the configuration that results from defaults, file, environment and flags, as one file.
    PrintConfig(Options),
    /// Print the affinity key of a build, the source of the key, and how the backends rank for it.
    ExplainKey(ExplainOptions),
    /// Print the name that a certificate gives a client, and what that client may do.
    ExplainAccess(ExplainAccessOptions),
    #[command(flatten)]
    Operate(commands::Command),
    /// Drain a daemon at every proxy: keep new builds away from it and wait until its builds have ended.
    DrainBackend(drain_client::Options),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Print a manual page.
    Man {
        /// The command that the page is about [default: all of buildkit-lb].
        command: Option<String>,
    },
}

#[derive(Debug, Args)]
struct Options {
    /// Configuration file [default: /etc/buildkit-lb/buildkit-lb.toml, if it exists].
    #[arg(long, env = "BUILDKIT_LB_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Given,
}

#[derive(Debug, Args)]
struct CheckOptions {
    /// Form of the output: table or json.
    #[arg(long, value_name = "FORM", default_value = "table", hide_possible_values = true)]
    output: check::Format,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Args)]
struct ExplainOptions {
    #[command(flatten)]
    parameters: Parameters,
    #[command(flatten)]
    options: Options,
}

/// The table of commands and flags. The documentation is generated from it.
pub fn command() -> clap::Command {
    Cli::command()
}

#[derive(Debug, Args)]
struct ExplainAccessOptions {
    #[command(flatten)]
    parameters: explain_access::Parameters,
    #[command(flatten)]
    options: Options,
}

/// Runs the command and returns its exit code.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // If standard output is closed, nobody can be told.
            let _ = error.print();
            return if error.use_stderr() { EXIT_USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    match cli.command {
        Command::Serve(options) => with_config(options, serve),
        Command::CheckConfig(options) => {
            with_config(options, |_config| print("configuration is valid\n"))
        }
        Command::Check(CheckOptions { options, output }) => {
            with_config(options, |config| check_live(config, output))
        }
        Command::PrintConfig(options) => with_config(options, |config| print(&config.to_toml())),
        Command::ExplainKey(ExplainOptions { options, parameters }) => {
            with_config(options, |config| match explain(&config, &parameters) {
                Ok(explanation) => print(&explanation.to_string()),
                Err(error) => failed(&error),
            })
        }
        Command::ExplainAccess(ExplainAccessOptions { options, parameters }) => {
            with_config(options, |config| match explain_access(&config, &parameters) {
                Ok(explanation) => print(&explanation.to_string()),
                Err(error) => failed(&error),
            })
        }
        Command::Operate(command) => operate(&command),
        Command::DrainBackend(options) => drain_backend(options),
        Command::Completions { shell } => print(&generate::completions(shell, command())),
        Command::Man { command: name } => match generate::manual(command(), name.as_deref()) {
            Ok(page) => print(&page),
            Err(error) => failed(&error),
        },
    }
}

/// Prints what `check` finds. The exit code is 1 if anything found is an error.
fn check_live(config: Config, output: check::Format) -> ExitCode {
    let runtime = match waiting_runtime() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    let findings = runtime.block_on(check::run(config));
    // What still waits for a server that does not answer is not waited for.
    runtime.shutdown_background();
    let printed = match findings.text(output) {
        Ok(text) => print(&text),
        Err(error) => failed(&error),
    };
    if findings.has_errors() { ExitCode::FAILURE } else { printed }
}

fn drain_backend(options: drain_client::Options) -> ExitCode {
    let _log = match Log::start(LogFormat::Text, LogLevel::Info) {
        Ok(log) => log,
        Err(error) => return failed(&error),
    };
    match waiting_runtime() {
        Ok(runtime) => runtime.block_on(drain_client::run(options)),
        Err(error) => failed(&error),
    }
}

fn operate(command: &commands::Command) -> ExitCode {
    let runtime = match waiting_runtime() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    match runtime.block_on(commands::run(command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&*error),
    }
}

/// A runtime for a command that waits nearly all of its time, so that one thread suffices.
fn waiting_runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

fn with_config(options: Options, run: impl FnOnce(Config) -> ExitCode) -> ExitCode {
    match Config::load(options.config.as_deref(), options.settings) {
        Ok(config) => run(config),
        Err(problems) => {
            complain(&problems.to_string());
            EXIT_USAGE.into()
        }
    }
}

fn runtime(worker_threads: usize) -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(worker_threads)
        .on_thread_park(moderation::before_poll)
        .enable_all()
        .build()
}

fn serve(config: Config) -> ExitCode {
    let log = match Log::start(config.process.log_format, config.process.log_level) {
        Ok(log) => log,
        Err(error) => return failed(&error),
    };
    // Each build holds two descriptors, so the proxy takes as many as the system grants.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    match run_app(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log.say(&failure(&*error));
            ExitCode::FAILURE
        }
    }
}

fn run_app(config: Config) -> Result<(), Box<dyn Error>> {
    let runtime = runtime(config.process.worker_threads())?;
    let served = runtime.block_on(async {
        let mut signals = Signals::new()?;
        tokio::select! {
            app = App::start(config) => app?.run(signals).await,
            // The proxy has not started, so there is nothing to drain.
            _ = signals.next() => {}
        }
        Ok(())
    });
    // The drain is over: whatever still runs may be cut.
    runtime.shutdown_background();
    served
}

/// Prints to standard output. If the reader has closed the pipe, that is no error.
fn print(text: &str) -> ExitCode {
    let mut stdout = io::stdout();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => failed(&error),
        _ => ExitCode::SUCCESS,
    }
}

fn failed(error: &(dyn Error + 'static)) -> ExitCode {
    complain(&failure(error));
    ExitCode::FAILURE
}

fn failure(error: &(dyn Error + 'static)) -> String {
    format!("buildkit-lb: {}", Chain(error))
}

/// Prints to standard error. If standard error is closed, nobody can be told.
fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "no drain waits for a test")]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_thread_that_has_nothing_left_to_do_asks_whether_to_wait() {
        let runtime = runtime(1).expect("a runtime");
        let unseen = runtime.block_on(async {
            tokio::spawn(async { moderation::received(1) }).await.expect("no panic");
            // The only thread parks before this timer fires.
            tokio::time::sleep(Duration::from_millis(20)).await;
            tokio::spawn(async { moderation::unseen() }).await.expect("no panic")
        });
        assert_eq!(unseen, 0);
    }
}
