//! Tokens in files: [`AdminTokens`] open the admin port, and [`ClientTokens`] give clients without a certificate a name.

mod admin;
mod clients;
mod file;

pub use self::{
    admin::AdminTokens,
    clients::ClientTokens,
    file::{TokenError, TokenFile, TokenList},
};

/// The scheme of a token in the header `authorization`, with the space behind it.
const BEARER: &[u8] = b"Bearer ";

/// The token in the value of a header `authorization`. `None` if the header has another scheme.
pub fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = header.split_at_checked(BEARER.len())?;
    scheme.eq_ignore_ascii_case(BEARER).then(|| token.trim_ascii())
}
