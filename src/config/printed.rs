//! A configuration, printed as a file.

use serde::Serialize;
use toml::Value;

use super::{AdminAccess, Config, Pool, Process, tls::TlsSettings};
use crate::identity;

impl Config {
    /// A file that gives the same configuration.
    pub fn to_toml(&self) -> String {
        let pools: Vec<_> = self.pools.iter().map(PrintedPool::from).collect();
        let (only, pool) = match <[_; 1]>::try_from(pools) {
            Ok([only]) if only.pool.is_unnamed() => (Some(only), Vec::new()),
            Ok(named) => (None, named.into()),
            Err(pools) => (None, pools),
        };
        let is_default = self.identities == identity::Rules::default();
        let printed = Printed {
            only,
            process: &self.process,
            admin_access: &self.admin_access,
            identity: (!is_default).then(|| self.identities.to_value()),
            access: self.access.to_value(),
            pool,
        };
        // Strings, numbers, lists and tables always have a TOML form.
        toml::to_string(&printed).unwrap_or_default()
    }
}

/// The file that [`Config::to_toml`] prints.
#[derive(Debug, Serialize)]
struct Printed<'a> {
    #[serde(flatten)]
    only: Option<PrintedPool<'a>>,
    #[serde(flatten)]
    process: &'a Process,
    #[serde(flatten)]
    admin_access: &'a AdminAccess,
    identity: Option<Value>,
    access: Option<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pool: Vec<PrintedPool<'a>>,
}

#[derive(Debug, Serialize)]
struct PrintedPool<'a> {
    #[serde(flatten)]
    pool: &'a Pool,
    #[serde(flatten)]
    tls: TlsSettings,
}

impl<'a> From<&'a Pool> for PrintedPool<'a> {
    fn from(pool: &'a Pool) -> Self {
        Self { pool, tls: pool.tls.settings() }
    }
}
