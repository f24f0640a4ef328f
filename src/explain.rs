//! `buildkit-lb explain-key`: the key of a build under a configuration, the source of the key, and the rank of each backend
//! for it. The command computes what the proxy would compute, and opens no connection.

use std::{
    fmt::{self, Write as _},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use clap::Args;
use prost::Message as _;

use crate::{
    affinity::{AffinityKey, Facts},
    config::{Config, Pool},
    fleet::Fleet,
    metrics::Metrics,
    policy::{self, KeyHash, PolicyKind},
    wire::{
        self, Payload, WireError,
        control::{Attr, CacheOptions, CacheOptionsEntry, Exporter, SolveRequest},
    },
};

/// A build's parameters, written as for buildctl.
#[derive(Debug, Args)]
pub struct Parameters {
    /// A frontend option, as for buildctl. Repeatable.
    #[arg(long, value_name = "NAME=VALUE")]
    opt: Vec<String>,
    /// An exporter, as for buildctl: type=image,name=NAME. Repeatable.
    #[arg(long, value_name = "type=TYPE,name=NAME")]
    output: Vec<String>,
    /// A cache exporter, as for buildctl: type=registry,ref=REF. Repeatable.
    #[arg(long, value_name = "type=TYPE,ref=REF")]
    export_cache: Vec<String>,
    /// A cache importer, as for buildctl. Repeatable.
    #[arg(long, value_name = "type=TYPE,ref=REF")]
    import_cache: Vec<String>,
    /// The shared key that the Session declares; buildx sends DIRECTORY:NODE.
    #[arg(long, value_name = "DIRECTORY:NODE")]
    shared_key: Option<String>,
    /// The pool that the build is sent to. Needed if there are several pools.
    #[arg(long, value_name = "NAME")]
    pool: Option<String>,
    /// The client's address.
    #[arg(long, value_name = "ADDRESS")]
    client: Option<String>,
    /// Read the parameters from a captured SolveRequest instead. The file may begin with the five bytes of a gRPC frame;
    /// - is standard input.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["opt", "output", "export_cache", "import_cache"])]
    solve: Option<PathBuf>,
}

/// Why a key cannot be explained.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// A parameter has no `=`.
    #[error("`{0}` is not NAME=VALUE")]
    NotAPair(String),
    /// The captured file cannot be read.
    #[error("read `{file}`")]
    Read {
        /// The path of the file.
        file: String,
        /// Why the file cannot be used.
        source: io::Error,
    },
    /// The configuration has several pools, or no pool of the given name.
    #[error("name one of the pools with --pool: {0}")]
    Pool(String),
    /// The captured file is not a SolveRequest.
    #[error("decode the captured SolveRequest")]
    Decode(#[from] WireError),
}

/// The key of a build, and where the key sends it.
#[derive(Debug)]
pub struct Explanation {
    key: Option<AffinityKey>,
    policy: PolicyKind,
    /// Names and capacities of the backends, the first choice first.
    ranking: Vec<(String, u32)>,
}

/// Explains the build that `parameters` describe.
///
/// # Errors
/// The parameters cannot be read.
pub fn explain(config: &Config, parameters: &Parameters) -> Result<Explanation, ExplainError> {
    let pool = parameters.pool(config)?;
    let request = parameters.request()?;
    let mut facts = Facts::read(&request, &pool.affinity).map_err(WireError::from)?;
    facts.client.clone_from(&parameters.client);
    facts.shared_key.clone_from(&parameters.shared_key);
    let key = pool.affinity.key(&facts);
    let fleet = Fleet::new(Metrics::default().into());
    fleet.replace(pool.backend.clone());
    let roster = fleet.roster();
    let policy = pool.policy;
    let ranking = match &key {
        Some(key) if policy == PolicyKind::ConsistentHash => {
            policy::ranking(KeyHash::new(&key.key), roster.candidates())
        }
        _ => Vec::new(),
    };
    let ranking = ranking.into_iter().map(|index| {
        let backend = &roster.backends()[index];
        (backend.name().to_owned(), backend.capacity())
    });
    Ok(Explanation { key, policy, ranking: ranking.collect() })
}

impl Parameters {
    fn pool<'a>(&self, config: &'a Config) -> Result<&'a Pool, ExplainError> {
        let meant = |pool: &&Pool| self.pool.as_ref().is_none_or(|name| *name == pool.name);
        match config.pools.iter().filter(meant).collect::<Vec<_>>().as_slice() {
            [pool] => Ok(pool),
            _ => {
                let names: Vec<_> = config.pools.iter().map(|pool| pool.name.as_str()).collect();
                Err(ExplainError::Pool(names.join(", ")))
            }
        }
    }

    /// The serialised SolveRequest.
    fn request(&self) -> Result<Bytes, ExplainError> {
        if let Some(file) = &self.solve {
            return Ok(unframed(read(file)?)?);
        }
        Ok(self.described()?.encode_to_vec().into())
    }

    /// The request that the arguments describe.
    fn described(&self) -> Result<SolveRequest, ExplainError> {
        let exporter = |csv: &String| {
            let (r#type, attrs) = parse_csv(csv)?;
            Ok(Exporter { r#type, attrs })
        };
        let entry = |csv: &String| {
            let (r#type, attrs) = parse_csv(csv)?;
            Ok(CacheOptionsEntry { r#type, attrs })
        };
        let exports: Result<_, ExplainError> = self.export_cache.iter().map(entry).collect();
        let imports: Result<_, ExplainError> = self.import_cache.iter().map(entry).collect();
        let exporters: Result<_, ExplainError> = self.output.iter().map(exporter).collect();
        let opts: Result<_, ExplainError> = self.opt.iter().map(|opt| pair(opt)).collect();
        Ok(SolveRequest {
            frontend_attrs: opts?,
            exporters: exporters?,
            cache: Some(CacheOptions {
                exports: exports?,
                imports: imports?,
                ..Default::default()
            }),
            ..Default::default()
        })
    }
}

/// Parses `type=TYPE,name=A,"name=A,B"`. An entry that contains a comma stands in quotes.
fn parse_csv(text: &str) -> Result<(Bytes, Vec<Attr>), ExplainError> {
    let mut attrs = Vec::new();
    let mut quoted = false;
    for entry in text.split(|c| {
        quoted ^= c == '"';
        c == ',' && !quoted
    }) {
        attrs.push(pair(&entry.replace('"', ""))?);
    }
    let kind = attrs.iter().find(|attr| *attr.key == *b"type").map(|attr| attr.value.clone());
    Ok((kind.unwrap_or_default(), attrs))
}

fn pair(text: &str) -> Result<Attr, ExplainError> {
    let (key, value) =
        text.split_once('=').ok_or_else(|| ExplainError::NotAPair(text.to_owned()))?;
    Ok(Attr { key: key.to_owned().into(), value: value.to_owned().into() })
}

/// Reads the file, but at most as many bytes as one message and its frame have.
fn read(file: &Path) -> Result<Bytes, ExplainError> {
    let mut bytes = Vec::new();
    let limit = (wire::MAX_MESSAGE_LEN + wire::PREFIX_LEN) as u64;
    let result = if file == Path::new("-") {
        io::stdin().take(limit).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(file).and_then(|opened| opened.take(limit).read_to_end(&mut bytes))
    };
    match result {
        Ok(_read) => Ok(bytes.into()),
        Err(source) => Err(ExplainError::Read { file: file.display().to_string(), source }),
    }
}

/// The message without its frame. A frame announces exactly the bytes that follow it; no message begins like that.
fn unframed(bytes: Bytes) -> Result<Bytes, WireError> {
    let framed = bytes.len() >= wire::PREFIX_LEN
        && bytes[0] <= 1
        && bytes[1..wire::PREFIX_LEN]
            == u32::try_from(bytes.len() - wire::PREFIX_LEN).unwrap_or(0).to_be_bytes();
    if !framed {
        return Ok(bytes);
    }
    Ok(match wire::payload(&bytes)? {
        Payload::Plain(plain) => plain,
        Payload::Gzip(packed) => wire::unpack(&packed)?.into(),
    })
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.key {
            Some(key) => writeln!(f, "key         {}\nkey_source  {}", key.key, key.source)?,
            None => writeln!(f, "key         none: the build is placed by load\nkey_source  none")?,
        }
        writeln!(f, "policy      {}", self.policy)?;
        if self.policy != PolicyKind::ConsistentHash {
            return writeln!(f, "backends    any, this policy uses no key");
        }
        for (rank, (name, capacity)) in self.ranking.iter().enumerate() {
            let mut line = format!("{rank:<11} {name}");
            if *capacity != 1 {
                write!(line, " (capacity {capacity})")?;
            }
            if rank == 0 {
                line.push_str("   home");
            }
            writeln!(f, "{line}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters() -> Parameters {
        Parameters {
            opt: Vec::new(),
            output: Vec::new(),
            export_cache: Vec::new(),
            import_cache: Vec::new(),
            shared_key: None,
            pool: None,
            client: None,
            solve: None,
        }
    }

    #[test]
    fn buildctl_arguments_are_read() {
        let parameters = Parameters {
            opt: vec!["target=app".into()],
            output: vec![r#"type=image,"name=b/x:1,a/y:2",push=true"#.into()],
            ..parameters()
        };
        let request = parameters.described().expect("valid");
        assert_eq!(&*request.exporters[0].r#type, b"image");
        assert_eq!(&*request.exporters[0].attrs[1].value, b"b/x:1,a/y:2");
        let wrong = Parameters { opt: vec!["target".into()], ..self::parameters() };
        assert!(matches!(wrong.described(), Err(ExplainError::NotAPair(_))));
    }

    #[test]
    fn a_captured_solve_may_have_its_frame() {
        let request = SolveRequest { r#ref: "r".into(), ..Default::default() };
        let plain = Bytes::from(request.encode_to_vec());
        let length = u32::try_from(plain.len()).expect("short").to_be_bytes();
        let framed = Bytes::from([&[0], &length[..], &plain[..]].concat());
        assert_eq!(unframed(plain.clone()).expect("plain"), plain);
        assert_eq!(unframed(framed).expect("framed"), plain);
    }
}
