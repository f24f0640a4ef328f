//! The commands of operators: `status`, `backends`, `builds`, `queue` and `top` show the snapshot of a running proxy, and
//! `cordon`, `uncordon` and `drain` change which backends get builds.

mod change;
mod output;
mod top;
mod views;

use std::{error::Error, io};

use clap::Subcommand;

pub use self::output::{HEADING as OUTPUT_HEADING, OutputError};
use self::{
    change::{Cordon, Drain},
    output::Flags,
    top::Top,
    views::{Builds, View},
};
use crate::{
    admin_client::{Ask, AskError, ProxyFlags},
    snapshot::Snapshot,
};

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print warnings, pools, sources of backends and certificates of a running proxy.
    Status(Flags),
    /// Print the backends of a running proxy.
    Backends(Flags),
    /// Print the builds that run, or those that ended last.
    Builds(Builds),
    /// Print the builds that wait, the next one first.
    Queue(Flags),
    /// Give a backend no new builds, until it is uncordoned.
    Cordon(Cordon),
    /// Give a backend new builds again. This also ends a drain.
    Uncordon(Cordon),
    /// Give a backend no new builds, and wait until its builds have ended.
    Drain(Drain),
    /// Show backends, builds and queue of a running proxy, again and again.
    Top(Top),
}

/// Why a command fails.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The proxy gives no good answer.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The output cannot be made or written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The system refuses something that the command needs.
    #[error("handle signals")]
    Signals(#[source] io::Error),
}

/// Runs one command to its end.
///
/// # Errors
/// The proxy gives no good answer, or the output cannot be written.
pub async fn run(command: &Command) -> Result<(), Box<dyn Error>> {
    let done = match command {
        Command::Status(flags) => show(flags, View::Status).await,
        Command::Backends(flags) => show(flags, View::Backends).await,
        Command::Builds(builds) => show(&builds.flags, builds.view()).await,
        Command::Queue(flags) => show(flags, View::Queue).await,
        Command::Cordon(cordon) => cordon.run(true).await,
        Command::Uncordon(cordon) => cordon.run(false).await,
        Command::Drain(drain) => drain.run().await,
        Command::Top(top) => top.run().await,
    };
    done.map_err(Into::into)
}

async fn show(flags: &Flags, view: View) -> Result<(), CommandError> {
    let snapshot = snapshot(&flags.proxy, flags.pool.as_deref()).await?;
    flags.print(&snapshot, view)?;
    Ok(())
}

/// The snapshot of the proxy, or the part of it that is about one pool.
async fn snapshot(proxy: &ProxyFlags, pool: Option<&str>) -> Result<Snapshot, AskError> {
    let text = proxy.ask(&Ask::get("/status.json")).await?;
    let url = || proxy.url().clone();
    let snapshot: Snapshot = serde_json::from_str(&text)
        .map_err(|source| AskError::Unreadable { url: url(), source })?;
    let Some(name) = pool else { return Ok(snapshot) };
    if snapshot.pools.iter().any(|pool| pool.name == name) {
        return Ok(snapshot.of_pool(name));
    }
    let known: Vec<_> = snapshot.pools.iter().map(|pool| pool.name.as_str()).collect();
    Err(AskError::NoPool { url: url(), pool: name.to_owned(), known: known.join(", ") })
}
