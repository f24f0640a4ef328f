//! `buildkit-lb explain-access`: who a certificate says that a client is, and what that client may do. Talks to
//! nobody, and does not ask whether the certificate is trusted.

use std::{
    fmt,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use clap::Args;

use crate::{
    access::Grant,
    config::Config,
    identity::{NoName, first_certificate},
};

/// The longest file that is read: a chain of certificates has a few KiB.
const MAX_FILE_LEN: u64 = 1 << 20;

/// Whose access is explained.
#[derive(Debug, Args)]
pub struct Parameters {
    /// A client's certificate, in PEM or DER; a file with a chain begins with it. Without one: a client without a
    /// certificate.
    #[arg(long, value_name = "FILE")]
    certificate: Option<PathBuf>,
}

/// Why access cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum ExplainAccessError {
    /// The file cannot be read.
    #[error("read `{}`", file.display())]
    Read {
        /// Its name.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file holds no certificate, or one that names nobody.
    #[error("tell a name from `{}`", file.display())]
    Name {
        /// Its name.
        file: PathBuf,
        /// Why.
        source: NoName,
    },
}

/// What a client is called and may do.
#[derive(Debug)]
pub struct Explanation<'a> {
    /// The name, and where it is from.
    name: Option<(String, &'static str)>,
    rule: Option<usize>,
    has_rules: bool,
    grant: &'a Grant,
}

/// Explains the access of the client that `parameters` tell of.
///
/// # Errors
/// The certificate cannot be read, or names nobody.
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
                first_certificate(&bytes).and_then(|leaf| config.identities.identify(&leaf));
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
            (None, true) => writeln!(f, "rule             none names it, so it may do nothing")?,
            (None, false) => writeln!(f, "rule             there are none")?,
        }
        self.grant.fmt(f)
    }
}
