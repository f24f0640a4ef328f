//! `buildkit-lb explain-access`: the name that a certificate gives a client, and what that client may do. The command opens
//! no connection, and does not check whether the certificate is trusted.

use std::{
    fmt,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use clap::Args;

use crate::{
    access::Grant,
    config::Config,
    identity::{NoName, certificate_chain},
};

/// The longest file that is read. A chain of certificates has a few KiB.
const MAX_FILE_LEN: u64 = 1 << 20;

/// The client whose access is explained.
#[derive(Debug, Args)]
pub struct Parameters {
    /// File with the client's certificate, in PEM or DER. Of a chain, the first certificate counts [default: a client
    /// without a certificate].
    #[arg(long, value_name = "FILE")]
    certificate: Option<PathBuf>,
}

/// Why access cannot be explained.
#[derive(Debug, thiserror::Error)]
pub enum ExplainAccessError {
    /// The file cannot be read.
    #[error("read `{}`", file.display())]
    Read {
        /// The path of the file.
        file: PathBuf,
        /// Why the file cannot be used.
        source: io::Error,
    },
    /// The file has no certificate, or no rule finds a name in the certificate.
    #[error("find a name in `{}`", file.display())]
    Name {
        /// The path of the file.
        file: PathBuf,
        /// Why the file cannot be used.
        source: NoName,
    },
}

/// The name of a client, and what the client may do.
#[derive(Debug)]
pub struct Explanation<'a> {
    /// The name, and the part of the certificate that has it.
    name: Option<(String, &'static str)>,
    rule: Option<usize>,
    has_rules: bool,
    grant: &'a Grant,
}

/// Explains the access of the client that `parameters` describe.
///
/// # Errors
/// The certificate cannot be read, or no rule finds a name in it.
pub fn explain_access<'a>(
    config: &'a Config,
    parameters: &Parameters,
) -> Result<Explanation<'a>, ExplainAccessError> {
    let identity = match &parameters.certificate {
        None => None,
        Some(file) => {
            let bytes = read(file)
                .map_err(|source| ExplainAccessError::Read { file: file.clone(), source })?;
            let identity =
                certificate_chain(&bytes).and_then(|chain| config.identities.identify(&chain));
            Some(
                identity
                    .map_err(|source| ExplainAccessError::Name { file: file.clone(), source })?,
            )
        }
    };
    Ok(Explanation {
        rule: config.access.number(identity.as_ref()),
        has_rules: !config.access.is_empty(),
        grant: config.access.grant(identity.as_ref()),
        name: identity.map(|identity| (identity.to_string(), identity.source())),
    })
}

fn read(file: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(file)?.take(MAX_FILE_LEN).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl fmt::Display for Explanation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some((name, source)) => {
                writeln!(f, "name             {name}\nfrom             {source}")?;
            }
            None => writeln!(f, "name             none: a client without a certificate")?,
        }
        match (self.rule, self.has_rules) {
            (Some(number), _) => writeln!(f, "rule             {number}")?,
            (None, true) => {
                writeln!(f, "rule             none names this client, so it may do nothing")?;
            }
            (None, false) => writeln!(f, "rule             there are none")?,
        }
        self.grant.fmt(f)
    }
}
