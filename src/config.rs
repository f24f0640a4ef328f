//! Configuration: flags over environment over file over defaults, parsed once into checked types.
//!
//! Each of the four is a table with the keys of the file. The tables are laid over each other, and the result is read once.
//! A setting is a field of [`Process`], [`AdminAccess`], [`Pool`] or `TlsSettings`, and only the field names it: key, flag
//! and variable have its name. Only this module reads the file and the environment. Every problem is found in one run.
//! Each problem has the key that it is about, and the place where the key was given.

mod admin;
mod affinity;
mod file;
mod given;
mod layers;
mod origins;
mod otlp;
mod pool;
mod pools;
mod printed;
mod problems;
mod process;
mod sections;
#[cfg(test)]
mod tests;
mod text;
mod tls;
mod value;

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use toml::{Table, Value};

pub use self::{
    admin::AdminAccess,
    given::Given,
    otlp::Collector,
    pool::Pool,
    problems::Problems,
    process::Process,
    tls::Tls,
    value::{Budget, Count, FilePath, LocalAddress, Span},
};
use self::{file::File, layers::over, origins::Origins, sections::Sections};
use crate::{access, address::Address, annotations, identity};

/// The file that is read if it exists and no other file is named.
pub const DEFAULT_FILE: &str = "/etc/buildkit-lb/buildkit-lb.toml";

/// The checked configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// At least one pool.
    pub pools: Vec<Pool>,
    /// How the certificate of a client gives its name.
    pub identities: identity::Rules,
    /// What clients may do.
    pub access: access::Rules,
    /// TLS on the admin port, and who may use the port.
    pub admin_access: AdminAccess,
    /// The other settings of the process.
    pub process: Process,
}

/// What the proxy reads from the daemons' pods, and what it writes to them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pods {
    /// Whether their labels are read.
    pub details: bool,
    /// Which annotations are written.
    pub annotations: annotations::Config,
}

impl Config {
    /// Reads `file`, or [`DEFAULT_FILE`] if that exists, lays what flags and environment have `given` over the file, and
    /// checks the result.
    ///
    /// # Errors
    /// Every problem with what was given.
    pub fn load(file: Option<&Path>, given: Given) -> Result<Self, Problems> {
        let mut problems = Vec::new();
        let default = || Some(PathBuf::from(DEFAULT_FILE)).filter(|file| file.exists());
        let file = file
            .map(Path::to_owned)
            .or_else(default)
            .and_then(|file| File::read(&file).map_err(|problem| problems.push(problem)).ok());
        let layers = [
            file.as_ref().map(|file| file.table.clone()).unwrap_or_default(),
            given.environment,
            given.flags,
        ];
        let settings = layers.into_iter().fold(Table::new(), over);
        let config = Self::read(&settings, &given.defaults, &mut problems);
        match config {
            Some(config) if problems.is_empty() => Ok(config),
            _ => {
                let origins = Origins::new(&given.origins, file.as_ref());
                Err(Problems::new(&problems, &origins))
            }
        }
    }

    /// Reads the table of all settings that were given.
    fn read(given: &Table, defaults: &Table, problems: &mut Vec<String>) -> Option<Self> {
        let mut sections = Sections::new(over(defaults.clone(), given.clone()), defaults, "");
        let identities = sections
            .take("identity")
            .map(|value| identity::Rules::from_value(value, "identity", problems));
        let access = sections.take("access");
        let own_pools = sections.take("pool");
        let (pool, tls) = Pool::read(&mut sections, problems)?;
        let mut process: Process = sections.read(problems)?;
        let admin_access: AdminAccess = sections.read(problems)?;
        sections.finish(problems);
        process.complete(problems);
        admin_access.check(process.admin_token_file.is_some(), problems);
        let pools = pools::read(own_pools, pool, &tls, given, problems)?;
        check_ports(&process, &pools, problems);
        let access = check_access(access, &pools, problems);
        let identities = identities.unwrap_or_default();
        Some(Self { pools, identities, access, admin_access, process })
    }
}

fn check_access(value: Option<Value>, pools: &[Pool], problems: &mut Vec<String>) -> access::Rules {
    let Some(value) = value else { return access::Rules::default() };
    let rules = access::Rules::from_value(value, "access", problems);
    let known = |name: &str| name.contains('*') || pools.iter().any(|pool| pool.name == name);
    for name in rules.pools().filter(|name| !known(name)) {
        problems.push(format!("access: there is no pool `{name}`"));
    }
    rules
}

/// Reports an address for clients that is also the address of the admin port.
fn check_ports(process: &Process, pools: &[Pool], problems: &mut Vec<String>) {
    let admin = &process.admin_listen;
    let ip = |host: &str| host.parse::<IpAddr>().ok();
    for address in pools.iter().flat_map(|pool| &pool.listen) {
        let Address::Tcp { host, port } = address else { continue };
        let same = *host == admin.host || ip(host).is_some_and(|own| Some(own) == ip(&admin.host));
        if *port != 0 && *port == admin.port && same {
            problems.push(format!(
                "admin-listen: `{admin}` is also an address for clients, give each a port of its own"
            ));
        }
    }
}
