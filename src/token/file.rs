//! A file of tokens that is read again when it changes.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tracing::{info, warn};

use crate::regular_file::{self, Unreadable};

/// The shortest time between two reads of the file, so that a client with wrong tokens causes no more disk accesses.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// Why a file of tokens cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("cannot read `{path}`: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file is a device, a pipe or a directory.
    #[error("`{0}` is not a regular file")]
    NotAFile(PathBuf),
    /// The file is longer than any list of tokens.
    #[error("`{path}` is larger than {most} bytes, more than any list of tokens")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The largest size, in bytes.
        most: u64,
    },
    /// The file has no token.
    #[error("`{0}` is empty: write a token into it, as `openssl rand -hex 32` makes one")]
    Empty(PathBuf),
    /// One line is not what it should be.
    #[error("line {line} of `{path}` is not {what}")]
    BadLine {
        /// The file.
        path: PathBuf,
        /// The number of the line, from 1.
        line: usize,
        /// What the line should be.
        what: &'static str,
    },
}

/// What a file of tokens holds.
pub trait TokenList: Sized + PartialEq + Send + Sync + 'static {
    /// Whose tokens they are, for the log.
    const WHOSE: &'static str;

    /// The largest file, in bytes. A file that is something else is not read to its end.
    const MAX_FILE: u64;

    /// What a line should be, for the error about one that is not.
    const LINE: &'static str;

    /// The list in `lines`, of which each has its number. None of them is blank.
    ///
    /// # Errors
    /// The number of the first line that is not what it should be.
    fn of_lines<'a>(lines: impl Iterator<Item = (usize, &'a str)>) -> Result<Self, usize>;

    /// Whether there is no token.
    fn is_empty(&self) -> bool;

    /// Reads a file.
    ///
    /// # Errors
    /// The file cannot be read, has no token, or has a line that is not what it should be.
    fn read(path: &Path) -> Result<Self, TokenError> {
        let text = regular_file::read(path, Self::MAX_FILE).map_err(|why| {
            let path = path.to_owned();
            match why {
                Unreadable::Failed(source) => TokenError::Read { path, source },
                Unreadable::NotRegular => TokenError::NotAFile(path),
                Unreadable::TooLong => TokenError::TooLarge { path, most: Self::MAX_FILE },
            }
        })?;
        Self::parse(&text, path)
    }

    /// Reads the text of the file `path`.
    ///
    /// # Errors
    /// The file has no token, or has a line that is not what it should be.
    fn parse(text: &[u8], path: &Path) -> Result<Self, TokenError> {
        let text = String::from_utf8_lossy(text);
        let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
        let list = Self::of_lines(lines.filter(|(_number, line)| !line.is_empty()));
        let list = list.map_err(|line| TokenError::BadLine {
            path: path.to_owned(),
            line,
            what: Self::LINE,
        })?;
        if list.is_empty() {
            return Err(TokenError::Empty(path.to_owned()));
        }
        Ok(list)
    }
}

/// A file of tokens that is read again when it changes. If the file cannot be read any more, the last tokens stay valid.
#[derive(Debug)]
pub struct TokenFile<T> {
    path: PathBuf,
    state: Mutex<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    tokens: Arc<T>,
    read_at: Instant,
    readable: bool,
}

impl<T: TokenList> TokenFile<T> {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// As [`TokenList::read`].
    pub fn open(path: &Path) -> Result<Self, TokenError> {
        let tokens = Arc::new(T::read(path)?);
        let state = State { tokens, read_at: Instant::now(), readable: true };
        Ok(Self { path: path.to_owned(), state: Mutex::new(state) })
    }

    /// The tokens that are in the file, or were in it a second ago.
    pub async fn current(&self) -> Arc<T> {
        if self.is_due(Instant::now()) {
            let path = self.path.clone();
            if let Ok(read) = tokio::task::spawn_blocking(move || T::read(&path)).await {
                self.take(read);
            }
        }
        Arc::clone(&self.state.lock().tokens)
    }

    fn is_due(&self, now: Instant) -> bool {
        let mut state = self.state.lock();
        let due = now.saturating_duration_since(state.read_at) >= READ_AGAIN;
        if due {
            state.read_at = now;
        }
        due
    }

    fn take(&self, read: Result<T, TokenError>) {
        let mut state = self.state.lock();
        match read {
            Ok(tokens) => {
                if tokens != *state.tokens {
                    info!(whose = T::WHOSE, file = %self.path.display(), "tokens reloaded");
                    state.tokens = Arc::new(tokens);
                }
                state.readable = true;
            }
            Err(error) => {
                if state.readable {
                    warn!(whose = T::WHOSE, %error, "cannot read tokens, the last ones stay valid");
                }
                state.readable = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::AdminTokens, *};

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    #[test]
    fn a_file_that_changes_is_taken_and_one_that_breaks_is_not() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), A).expect("written");
        let tokens = TokenFile::<AdminTokens>::open(file.path()).expect("tokens");
        let admits = |token: &str| {
            tokens.take(AdminTokens::read(file.path()));
            tokens.state.lock().tokens.admit(token.as_bytes())
        };
        std::fs::write(file.path(), B).expect("written");
        assert!(admits(B) && !admits(A));
        std::fs::write(file.path(), "").expect("written");
        assert!(admits(B) && !admits(""));
        let now = Instant::now() + READ_AGAIN;
        assert!(tokens.is_due(now) && !tokens.is_due(now + READ_AGAIN / 2));
    }

    #[test]
    fn what_is_no_file_is_refused_and_says_why() {
        for (path, told) in [("/dev/zero", "not a regular file"), ("/no/such/file", "cannot read")]
        {
            let error = AdminTokens::read(Path::new(path)).expect_err(told);
            assert!(error.to_string().contains(told), "{error}");
        }
    }
}
