//! The file of admin tokens. A client that has one may change things on the admin port.
//!
//! There is one token on each line, so that an old and a new one are valid at the same time while a Secret is
//! changed. The file is read again when it changes. If it cannot be read any more, the last tokens stay valid.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use subtle::{Choice, ConstantTimeEq as _};
use tracing::{info, warn};

use crate::regular_file::{self, Unreadable};

/// The shortest token in characters. Nobody can guess 32 random characters, and passwords that people make up are
/// shorter.
const MIN_LENGTH: usize = 32;

/// The largest file in bytes. A few tokens need far less, and a wrong file is not read to its end.
const MAX_FILE: u64 = 4096;

/// The shortest time between two checks of the file, so that a client with wrong tokens causes no more disk accesses.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Why a file of tokens cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The system cannot read the file.
    #[error("cannot read `{path}`: {source}")]
    Read {
        /// The path of the file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The file is a device, a pipe or a directory.
    #[error("`{0}` is not a regular file")]
    NotAFile(PathBuf),
    /// The file is larger than any list of tokens.
    #[error("`{0}` is larger than {MAX_FILE} bytes, more than any list of tokens")]
    TooLarge(PathBuf),
    /// The file has no token.
    #[error("`{0}` is empty: write a token into it, as `openssl rand -hex 32` makes one")]
    Empty(PathBuf),
    /// A line is not a token.
    #[error(
        "line {line} of `{path}` is not a token of at least {MIN_LENGTH} visible ASCII characters, as \
         `openssl rand -hex 32` makes one"
    )]
    NotAToken {
        /// The path of the file.
        path: PathBuf,
        /// The number of the line, counted from 1.
        line: usize,
    },
}

/// The tokens of a file, of which there is one at least.
#[derive(Clone, PartialEq, Eq)]
pub struct Tokens(Vec<String>);

impl Tokens {
    /// Reads a file.
    ///
    /// # Errors
    /// The file cannot be read, or has a line that is not a token.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let text = regular_file::read(path, MAX_FILE).map_err(|why| {
            let path = path.to_owned();
            match why {
                Unreadable::Failed(source) => TokenError::Read { path, source },
                Unreadable::NotRegular => TokenError::NotAFile(path),
                Unreadable::TooLong => TokenError::TooLarge(path),
            }
        })?;
        Self::parse(&text, path)
    }

    fn parse(text: &[u8], path: &Path) -> Result<Self, TokenError> {
        let text = String::from_utf8_lossy(text);
        let mut tokens = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let token = line.trim();
            if token.is_empty() {
                continue;
            }
            if token.len() < MIN_LENGTH || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(TokenError::NotAToken { path: path.to_owned(), line: index + 1 });
            }
            tokens.push(token.to_owned());
        }
        if tokens.is_empty() {
            return Err(TokenError::Empty(path.to_owned()));
        }
        Ok(Self(tokens))
    }

    /// The token to send to proxies.
    pub fn first(&self) -> &str {
        // There is always one token, and none is empty.
        self.0.first().map_or("", String::as_str)
    }

    /// Whether `token` is one of these. The time for the answer does not depend on how much of `token` is right.
    pub fn admit(&self, token: &[u8]) -> bool {
        let right = self.0.iter().map(|own| own.as_bytes().ct_eq(token));
        right.fold(Choice::from(0), |any, one| any | one).into()
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A file of tokens that is read again when it changes.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    tokens: Tokens,
    looked: Instant,
    well: bool,
}

impl TokenFile {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// As [`Tokens::read`].
    pub fn open(path: &Path) -> Result<Self, TokenError> {
        let state = State { tokens: Tokens::read(path)?, looked: Instant::now(), well: true };
        Ok(Self { path: path.to_owned(), state: Mutex::new(state) })
    }

    /// Whether `token` is in the file, or was in it a second ago.
    pub async fn admit(&self, token: &[u8]) -> bool {
        if self.is_due(Instant::now()) {
            let path = self.path.clone();
            if let Ok(read) = tokio::task::spawn_blocking(move || Tokens::read(&path)).await {
                self.take(read);
            }
        }
        self.state.lock().tokens.admit(token)
    }

    fn is_due(&self, now: Instant) -> bool {
        let mut state = self.state.lock();
        let due = now.saturating_duration_since(state.looked) >= LOOK_AGAIN;
        if due {
            state.looked = now;
        }
        due
    }

    fn take(&self, read: Result<Tokens, TokenError>) {
        let mut state = self.state.lock();
        match read {
            Ok(tokens) => {
                if tokens != state.tokens {
                    info!(file = %self.path.display(), "admin tokens reloaded");
                }
                state.tokens = tokens;
                state.well = true;
            }
            Err(error) => {
                if state.well {
                    warn!(%error, "cannot read admin tokens, the last ones stay valid");
                }
                state.well = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn written(text: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("written");
        file
    }

    #[test]
    fn every_line_is_a_token() {
        let tokens = Tokens::read(written(format!("{A}\n\n {B} \r\n").as_bytes()).path());
        let tokens = tokens.expect("tokens");
        assert!(tokens.admit(A.as_bytes()) && tokens.admit(B.as_bytes()));
        for wrong in ["", &A[1..], &format!("{A}a"), &format!("{A}{B}")] {
            assert!(!tokens.admit(wrong.as_bytes()), "{wrong}");
        }
        assert_eq!((tokens.first(), format!("{tokens:?}").as_str()), (A, "[redacted]"));
    }

    #[test]
    fn a_file_of_something_else_is_refused_and_says_why() {
        let long = "a".repeat(5000);
        let short = format!("{A}\nshort");
        let spaced = format!("{A} {B}");
        for (text, told) in [
            ("", "is empty"),
            (" \n\n", "is empty"),
            (&*short, "line 2"),
            (&*spaced, "line 1"),
            (&*long, "larger than 4096"),
        ] {
            let error = Tokens::read(written(text.as_bytes()).path()).expect_err(told);
            assert!(error.to_string().contains(told), "{error}");
        }
        for (path, told) in [("/dev/zero", "not a regular file"), ("/no/such/file", "cannot read")]
        {
            let error = Tokens::read(Path::new(path)).expect_err(told);
            assert!(error.to_string().contains(told), "{error}");
        }
    }

    #[test]
    fn a_file_that_changes_is_taken_and_one_that_breaks_is_not() {
        let file = written(A.as_bytes());
        let tokens = TokenFile::open(file.path()).expect("tokens");
        let admits = |token: &str| {
            tokens.take(Tokens::read(file.path()));
            tokens.state.lock().tokens.admit(token.as_bytes())
        };
        std::fs::write(file.path(), B).expect("written");
        assert!(admits(B) && !admits(A));
        std::fs::write(file.path(), "").expect("written");
        assert!(admits(B) && !admits(""));
        let now = Instant::now() + LOOK_AGAIN;
        assert!(tokens.is_due(now) && !tokens.is_due(now + LOOK_AGAIN / 2));
    }

    proptest! {
        #[test]
        fn no_file_panics_and_no_token_is_admitted_that_is_not_a_line(
            text in proptest::collection::vec(any::<u8>(), 0..200),
            asked in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            if let Ok(tokens) = Tokens::parse(&text, Path::new("x")) {
                let lines = String::from_utf8_lossy(&text);
                let line = lines.lines().any(|line| line.trim().as_bytes() == asked);
                prop_assert!(!tokens.admit(&asked) || (line && asked.len() >= MIN_LENGTH));
            }
        }
    }
}
