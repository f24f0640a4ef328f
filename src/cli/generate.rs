//! Completion scripts and manual pages, generated from the table of commands and flags.

use std::io;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

/// Why there is no manual page.
#[derive(Debug, thiserror::Error)]
pub(super) enum ManualError {
    /// There is no command of this name.
    #[error("buildkit-lb has no command `{0}`")]
    Unknown(String),
    /// The page cannot be written.
    #[error("write the manual page")]
    Write(#[from] io::Error),
}

/// The completion script of `command` for `shell`.
pub(super) fn completions(shell: Shell, mut command: Command) -> String {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    // clap_complete 4.6 writes the hyphen in `buildkit-lb` in two ways for bash, so completion finds no flags.
    String::from_utf8_lossy(&script).replace("buildkit__subcmd__lb", "buildkit__lb")
}

/// The manual page of `command`, or of its subcommand `name`, in roff.
///
/// # Errors
/// There is no such subcommand.
pub(super) fn manual(mut command: Command, name: Option<&str>) -> Result<String, ManualError> {
    command.build();
    let command = match name {
        Some(name) => {
            let found = command.find_subcommand(name).cloned();
            found.ok_or_else(|| ManualError::Unknown(name.to_owned()))?
        }
        None => command,
    };
    // The title of a page is the name of its file, for example `buildkit-lb-serve`.
    let title = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let mut page = Vec::new();
    Man::new(command).title(title).render(&mut page)?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}
