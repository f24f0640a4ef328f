//! The tokens of the admin port. There is one token on each line, so that an old and a new one are valid at the same time
//! while a Secret is changed.

use std::fmt;

use subtle::{Choice, ConstantTimeEq as _};

use super::file::TokenList;

/// The shortest token in characters. Nobody can guess 32 random characters, and passwords that people make up are
/// shorter.
const MIN_LENGTH: usize = 32;

/// The tokens of a file, of which there is one at least. A client that has one may change things on the admin port.
#[derive(Clone, PartialEq, Eq)]
pub struct AdminTokens(Vec<String>);

impl TokenList for AdminTokens {
    const WHOSE: &'static str = "admin";
    // A few tokens need far less.
    const MAX_FILE: u64 = 4096;
    const LINE: &'static str =
        "a token of at least 32 visible ASCII characters, as `openssl rand -hex 32` makes one";

    fn of_lines<'a>(lines: impl Iterator<Item = (usize, &'a str)>) -> Result<Self, usize> {
        let token = |(number, line): (usize, &str)| {
            let fits = line.len() >= MIN_LENGTH && line.bytes().all(|byte| byte.is_ascii_graphic());
            if fits { Ok(line.to_owned()) } else { Err(number) }
        };
        lines.map(token).collect::<Result<_, _>>().map(Self)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl AdminTokens {
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

impl fmt::Debug for AdminTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn parse(text: &str) -> Result<AdminTokens, String> {
        AdminTokens::parse(text.as_bytes(), Path::new("x")).map_err(|error| error.to_string())
    }

    #[test]
    fn every_line_is_a_token() {
        let tokens = parse(&format!("{A}\n\n {B} \r\n")).expect("tokens");
        assert!(tokens.admit(A.as_bytes()) && tokens.admit(B.as_bytes()));
        for wrong in ["", &A[1..], &format!("{A}a"), &format!("{A}{B}")] {
            assert!(!tokens.admit(wrong.as_bytes()), "{wrong}");
        }
        assert_eq!((tokens.first(), format!("{tokens:?}").as_str()), (A, "[redacted]"));
    }

    #[test]
    fn a_file_of_something_else_is_refused_and_says_why() {
        let short = format!("{A}\nshort");
        let spaced = format!("{A} {B}");
        for (text, told) in
            [("", "is empty"), (" \n\n", "is empty"), (&*short, "line 2"), (&*spaced, "line 1")]
        {
            let error = parse(text).expect_err(told);
            assert!(error.contains(told), "{error}");
        }
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "a".repeat(5000)).expect("written");
        let error = AdminTokens::read(file.path()).expect_err("too large");
        assert!(error.to_string().contains("larger than 4096"), "{error}");
    }

    proptest! {
        #[test]
        fn no_file_panics_and_no_token_is_admitted_that_is_not_a_line(
            text in proptest::collection::vec(any::<u8>(), 0..200),
            asked in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            if let Ok(tokens) = AdminTokens::parse(&text, Path::new("x")) {
                let lines = String::from_utf8_lossy(&text);
                let line = lines.lines().any(|line| line.trim().as_bytes() == asked);
                prop_assert!(!tokens.admit(&asked) || (line && asked.len() >= MIN_LENGTH));
            }
        }
    }
}
