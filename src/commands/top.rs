//! `buildkit-lb top`: one frame after the other, each with the warnings, backends, queue and builds of the moment.
//!
//! On a terminal, each frame replaces the last one on a screen of its own, and the old screen comes back at the end. On a
//! pipe, the frames follow each other.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use super::{
    CommandError, OutputError,
    output::{HEADING, print},
    snapshot,
    views::{backends, builds, queue, warnings},
};
use crate::{
    admin_client::ProxyFlags,
    error::chain,
    shutdown::Signals,
    snapshot::Snapshot,
    terminal::{self, Size, Style, Table, cut, printable},
};

/// The shortest interval. A person sees nothing faster, and the proxy has other things to do.
const SHORTEST: Duration = Duration::from_millis(100);

/// Begins a screen of its own without a cursor, and ends it (xterm's private modes 1049 and 25).
const OPEN: &str = "\x1b[?1049h\x1b[?25l";
const CLOSE: &str = "\x1b[?25h\x1b[?1049l";

/// The flags of `top`.
#[derive(Debug, clap::Args)]
pub struct Top {
    /// How often the proxy is asked, for example 500ms, 2s or 1m.
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = humantime::parse_duration)]
    interval: Duration,
    #[command(flatten)]
    proxy: ProxyFlags,
    /// Print only what is about this pool.
    #[arg(help_heading = HEADING, long, value_name = "NAME")]
    pool: Option<String>,
}

impl Top {
    /// Shows frames until a signal comes, or until nobody reads them.
    pub(super) async fn run(&self) -> Result<(), CommandError> {
        let mut signals = Signals::new().map_err(CommandError::Signals)?;
        let frames = async {
            let mut screen = Screen::open()?;
            let mut last = None;
            loop {
                let error = match snapshot(&self.proxy, self.pool.as_deref()).await {
                    Ok(now) => {
                        last = Some(now);
                        None
                    }
                    // The proxy may come back. Until then, its last state is shown.
                    Err(error) => {
                        Some(format!("the proxy does not answer, trying again: {}", chain(&error)))
                    }
                };
                if !screen
                    .show(|colours, size| frame(last.as_ref(), error.as_deref(), colours, size))?
                {
                    return Ok(());
                }
                tokio::time::sleep(self.interval.max(SHORTEST)).await;
            }
        };
        tokio::select! {
            ended = frames => ended,
            _signal = signals.next() => Ok(()),
        }
    }
}

/// The lines of one frame: at most the rows of `size`, none longer than its columns.
fn frame(
    last: Option<&Snapshot>,
    error: Option<&str>,
    colours: bool,
    size: Option<Size>,
) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(error) = error {
        let error = printable(error);
        lines.extend(fold(&error, size).map(|line| Style::Bad.paint(line, colours)));
    }
    if let Some(now) = last {
        let (running, waiting) = (now.builds.len(), now.queue.len());
        let title = format!(
            "buildkit-lb {} at {}: {} backends, {running} builds run, {waiting} wait",
            printable(&now.version),
            now.time,
            now.backends.len()
        );
        lines.extend(fold(&title, size).map(str::to_owned));
        for warning in warnings(now, false) {
            lines.extend(fold(&warning, size).map(|line| Style::Doubtful.paint(line, colours)));
        }
        for table in [backends(now), queue(now), builds(now)] {
            lines.extend(block(&table, colours, size));
        }
    }
    if let Some(Size { rows, .. }) = size
        && lines.len() > rows
    {
        let hidden = lines.len() - rows + 1;
        lines.truncate(rows.saturating_sub(1));
        lines.extend(fold(&format!("… {hidden} lines more"), size).next().map(str::to_owned));
    }
    lines
}

/// `text` in pieces that are at most as wide as the terminal.
fn fold(text: &str, size: Option<Size>) -> impl Iterator<Item = &str> {
    let columns = size.map_or(usize::MAX, |size| size.columns);
    let mut rest = text;
    std::iter::from_fn(move || {
        let piece = cut(rest, columns);
        rest = &rest[piece.len()..];
        (!piece.is_empty()).then_some(piece)
    })
}

/// The lines of a table after an empty line. Nothing if the table is empty.
fn block(table: &Table, colours: bool, size: Option<Size>) -> Vec<String> {
    if table.is_empty() {
        return Vec::new();
    }
    let lines = table.lines(colours, size.map(|size| size.columns));
    std::iter::once(String::new()).chain(lines).collect()
}

/// Standard output: a terminal, or anything else.
#[derive(Debug)]
struct Screen {
    terminal: bool,
    colours: bool,
}

impl Screen {
    fn open() -> Result<Self, OutputError> {
        let stdout = io::stdout();
        let screen =
            Self { terminal: stdout.is_terminal(), colours: terminal::has_colours(&stdout) };
        if screen.terminal {
            print(OPEN)?;
        }
        Ok(screen)
    }

    /// Shows the lines that `frame` makes. Returns whether anybody reads them.
    fn show(
        &mut self,
        frame: impl FnOnce(bool, Option<Size>) -> Vec<String>,
    ) -> Result<bool, OutputError> {
        let stdout = io::stdout();
        let size = self.terminal.then(|| Size::of(&stdout));
        let lines = frame(self.colours, size);
        let text = if self.terminal {
            // Each line is erased to its end after it is written, so that nothing flickers. The last one has no line end,
            // which would scroll.
            format!("\x1b[H{}\x1b[K\x1b[J", lines.join("\x1b[K\r\n"))
        } else {
            lines.iter().map(|line| format!("{line}\n")).chain(["\n".to_owned()]).collect()
        };
        let mut stdout = stdout.lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.terminal {
            // If the terminal is gone, there is nothing to restore.
            let _ = print(CLOSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{Backend, Build};

    fn busy() -> Snapshot {
        let backend = |number: usize| Backend { name: format!("b{number}"), ..Backend::default() };
        Snapshot {
            backends: (0..100).map(backend).collect(),
            builds: vec![Build { key: "k".repeat(10_000), ..Build::default() }],
            ..Snapshot::default()
        }
    }

    #[test]
    fn a_frame_fits_the_terminal_however_small() {
        for (columns, rows) in [(80, 24), (20, 5), (1, 1), (200, 300)] {
            let lines = frame(Some(&busy()), Some("gone"), false, Some(Size { columns, rows }));
            assert!(lines.len() <= rows, "{columns}x{rows}: {}", lines.len());
            assert!(lines.iter().all(|line| line.chars().count() <= columns), "{lines:#?}");
        }
        let lines = frame(Some(&busy()), None, false, Some(Size { columns: 80, rows: 24 }));
        assert!(lines.last().is_some_and(|line| line.ends_with("lines more")), "{lines:#?}");
        assert_eq!(frame(Some(&busy()), None, false, None).len(), 1 + 102 + 3);
    }

    #[test]
    fn a_proxy_that_is_gone_is_told_above_its_last_state() {
        let lines = frame(Some(&busy()), Some("ask: connect"), true, None);
        assert_eq!(lines[0], "\x1b[31mask: connect\x1b[0m");
        assert!(lines[1].starts_with("buildkit-lb"), "{}", lines[1]);
        assert_eq!(frame(None, Some("gone"), false, None), ["gone"]);
    }
}
