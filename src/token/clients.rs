//! The tokens by which clients without a certificate have a name.
//!
//! The file holds no token, only their hashes, so whoever reads the file cannot build.

use std::{fmt, sync::Arc};

use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use subtle::ConstantTimeEq as _;

use super::file::TokenList;
use crate::identity::Identity;

/// The most tokens: the hash of one that is shown is compared with all of them.
const MAX_TOKENS: usize = 1000;

/// The SHA-256 of a token.
type Hash = [u8; SHA256_OUTPUT_LEN];

/// The hashes of tokens, each with the client that has the token. Several tokens may be of one client.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientTokens(Vec<(Hash, Arc<Identity>)>);

impl TokenList for ClientTokens {
    const WHOSE: &'static str = "clients";
    // As many lines as there may be, with names of the usual length.
    const MAX_FILE: u64 = 256 << 10;
    const LINE: &'static str = "the SHA-256 of a token in hexadecimal, a space, and the name of its client, one of at \
                                most 1 000 lines and unlike the lines before";

    fn of_lines<'a>(lines: impl Iterator<Item = (usize, &'a str)>) -> Result<Self, usize> {
        let mut tokens: Vec<(Hash, Arc<Identity>)> = Vec::new();
        for (number, line) in lines {
            let (hash, name) = line.split_once(char::is_whitespace).ok_or(number)?;
            let hash = read_hash(hash).ok_or(number)?;
            let client = Identity::of_token(name.trim()).ok_or(number)?;
            if tokens.len() == MAX_TOKENS || tokens.iter().any(|(other, _client)| *other == hash) {
                return Err(number);
            }
            tokens.push((hash, Arc::new(client)));
        }
        Ok(Self(tokens))
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl ClientTokens {
    /// The client that has `token`. The time that the answer takes does not depend on how much of the hash is right.
    pub fn client(&self, token: &[u8]) -> Option<&Arc<Identity>> {
        let shown = digest(&SHA256, token);
        let mut found = None;
        for (hash, client) in &self.0 {
            if bool::from(hash.ct_eq(shown.as_ref())) {
                found = Some(client);
            }
        }
        found
    }
}

impl fmt::Debug for ClientTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Reads 64 hexadecimal digits.
fn read_hash(text: &str) -> Option<Hash> {
    let digits: Option<Vec<_>> = text.chars().map(|digit| digit.to_digit(16)).collect();
    let digits = digits.filter(|digits| digits.len() == 2 * SHA256_OUTPUT_LEN)?;
    let bytes = digits.chunks(2).map(|pair| u8::try_from(pair[0] << 4 | pair[1]));
    bytes.collect::<Result<Vec<_>, _>>().ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    /// The hash of some token.
    const A: &str = "0d7ab6a4f0dd03e8e1b01f9ee4c46ddd50ba7b6f94b30f1c0b3d4a1ff1a2c3d4";

    fn hash(token: &str) -> String {
        let digest = digest(&SHA256, token.as_bytes());
        digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn parse(text: &str) -> Result<ClientTokens, String> {
        ClientTokens::parse(text.as_bytes(), Path::new("x")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_token_names_its_client() {
        let (a, new) = (hash("token of a"), hash("new token of a").to_uppercase());
        let text = format!("{a}  team a\n\n{new} team a\n{} team-b\n", hash("b"));
        let tokens = parse(&text).expect("tokens");
        let client = |token: &str| tokens.client(token.as_bytes()).map(|client| client.name());
        assert_eq!(client("token of a"), Some("team a"));
        assert_eq!(client("new token of a"), Some("team a"));
        assert_eq!(client("b"), Some("team-b"));
        for other in ["", "c", &a] {
            assert_eq!(client(other), None, "{other}");
        }
        assert_eq!(format!("{tokens:?}"), "[redacted]");
    }

    #[test]
    fn a_file_of_something_else_is_refused_and_says_why() {
        let again = format!("{A} a\n{A} b");
        let spiffe = format!("{A} spiffe://example.org/a");
        let cases: [(&str, &str); 8] = [
            ("\n", "is empty"),
            (A, "line 1"),
            ("0d7a a", "line 1"),
            (&format!("{}g a", &A[1..]), "line 1"),
            (&format!("{A}\u{e9} a"), "line 1"),
            (&format!("{A} {}", "a".repeat(300)), "line 1"),
            (&again, "line 2"),
            (&spiffe, "line 1"),
        ];
        for (text, told) in cases {
            let error = parse(text).expect_err(told);
            assert!(error.contains(told), "{text}: {error}");
        }
        let many: String =
            (0..=MAX_TOKENS).map(|n| format!("{} a\n", hash(&n.to_string()))).collect();
        assert!(parse(&many).expect_err("too many").contains("line 1001"));
    }

    proptest! {
        #[test]
        fn no_file_panics(text in proptest::collection::vec(any::<u8>(), 0..300), name in "\\PC{0,20}") {
            let _ = ClientTokens::parse(&text, Path::new("x"));
            let _ = parse(&format!("{A} {name}"));
        }
    }
}
