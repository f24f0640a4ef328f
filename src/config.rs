//! Configuration: flags over environment over file over defaults, parsed once into checked types.
//!
//! Each of the four is a table with the keys of the file. The tables are laid over each other, and the result is read once.
//! A setting is a field of [`Process`], [`Pool`] or `TlsSettings`, and the field alone names it: key, flag and variable have
//! its name. Only this module reads the file and the environment. Every problem is found in one run, each with the key that
//! the problem is about and with where the key was given.

mod admin;
mod affinity;
mod file;
mod given;
mod layers;
mod origins;
mod pool;
mod process;
mod sections;
#[cfg(test)]
mod tests;
mod tls;
mod value;

use std::{
    collections::HashSet,
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::Serialize;
use toml::{Table, Value};

pub use self::{
    admin::AdminAccess,
    given::Given,
    pool::Pool,
    process::Process,
    tls::Tls,
    value::{Budget, Count, FilePath, LocalAddress, Span},
};
use self::{file::File, layers::over, origins::Origins, sections::Sections, tls::TlsSettings};
use crate::{access, address::Address, annotations, identity};

/// The file that is read if it exists and no other file is named.
pub const DEFAULT_FILE: &str = "/etc/buildkit-lb/buildkit-lb.toml";

/// The longest problem, in characters: a problem quotes what may be anything.
const MAX_PROBLEM_LEN: usize = 1000;

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

/// All that is wrong with a configuration; one line each.
#[derive(Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Problems {}

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
                Err(Problems(problems.iter().map(|problem| shown(problem, &origins)).collect()))
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
        let own_tables = pool_tables(sections.take("pool"), problems);
        let (pool, tls) = Pool::read(&mut sections, problems)?;
        let mut process: Process = sections.read(problems)?;
        let admin_access: AdminAccess = sections.read(problems)?;
        sections.finish(problems);
        process.complete(problems);
        admin_access.check(process.admin_token_file.is_some(), problems);
        let pools = if own_tables.is_empty() {
            vec![Pool::only(pool, &tls, given, problems)]
        } else {
            read_pools(own_tables, &pool.common(&tls, given, problems), problems)?
        };
        check_ports(&process, &pools, problems);
        let access = check_access(access, &pools, problems);
        let identities = identities.unwrap_or_default();
        Some(Self { pools, identities, access, admin_access, process })
    }

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

/// The problem on one line of bounded length, followed by where its key was given.
fn shown(problem: &str, origins: &Origins<'_>) -> String {
    let key = problem.split_once(": ").map_or("", |(key, _text)| key);
    let origin = origins.of(key).map(|origin| format!(" ({origin})")).unwrap_or_default();
    let mut line: String = problem.chars().take(MAX_PROBLEM_LEN).collect();
    if line.len() < problem.len() {
        line.push('…');
    }
    line.chars().chain(origin.chars()).flat_map(escaped).collect()
}

fn escaped(c: char) -> impl Iterator<Item = char> {
    let escape = c.is_control().then(|| c.escape_default());
    let plain = (!c.is_control()).then_some(c);
    escape.into_iter().flatten().chain(plain)
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

/// The entries of `[[pool]]`, each with its number.
fn pool_tables(value: Option<Value>, problems: &mut Vec<String>) -> Vec<(usize, Table)> {
    let entries = match value {
        None => Vec::new(),
        Some(Value::Array(entries)) => entries,
        Some(_) => {
            problems.push("pool: must be a list of tables, as [[pool]]".to_owned());
            Vec::new()
        }
    };
    let mut tables = Vec::with_capacity(entries.len());
    for (index, entry) in entries.into_iter().enumerate() {
        match entry {
            Value::Table(table) => tables.push((index, table)),
            other => {
                let found = other.type_str();
                problems.push(format!("pool[{index}]: must be a table, found {found}"));
            }
        }
    }
    tables
}

fn read_pools(
    tables: Vec<(usize, Table)>,
    common: &Table,
    problems: &mut Vec<String>,
) -> Option<Vec<Pool>> {
    let mut pools = Vec::with_capacity(tables.len());
    let (mut names, mut addresses) = (HashSet::new(), HashSet::new());
    for (index, table) in tables {
        let path = format!("pool[{index}].");
        let pool = Pool::named(table, common, &path, problems)?;
        if !names.insert(pool.name.clone()) {
            problems.push(format!("{path}name: `{}` is given twice", pool.name));
        }
        for address in &pool.listen {
            let any_port = matches!(address, Address::Tcp { port: 0, .. });
            if !any_port && !addresses.insert(address.clone()) {
                problems.push(format!("{path}listen: `{address}` is given twice"));
            }
        }
        pools.push(pool);
    }
    Some(pools)
}
