//! A Service and which of its ports, as `--discover kubernetes://…` writes it.

use std::{fmt, str::FromStr};

/// A Service, and which of its ports.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Service {
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
    /// Where its pods listen.
    pub(crate) port: Port,
}

/// Which port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Port {
    /// The one called buildkit, buildkitd, grpc or tcp, or the only one.
    Usual,
    /// This port of the pods, whether or not the Service has it.
    Number(u16),
    /// The one of this name.
    Name(String),
}

impl FromStr for Service {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, port) = match text.split_once(':') {
            Some((path, port)) => (path, Some(port)),
            None => (text, None),
        };
        let port = match port {
            None => Port::Usual,
            Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => match port.parse() {
                Ok(number) if number > 0 => Port::Number(number),
                _ => return Err(format!("port `{port}` is not a number from 1 to 65535")),
            },
            Some(port) if is_name(port) => Port::Name(port.to_owned()),
            Some(port) => return Err(format!("`{port}` is no name of a port")),
        };
        match path.split_once('/') {
            Some((namespace, name)) if is_name(namespace) && is_name(name) => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned(), port })
            }
            _ => Err(format!("`{text}` is not NAMESPACE/SERVICE[:PORT]")),
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)?;
        match &self.port {
            Port::Usual => Ok(()),
            Port::Number(number) => write!(f, ":{number}"),
            Port::Name(name) => write!(f, ":{name}"),
        }
    }
}

/// What Kubernetes takes as the name of a namespace, a Service or a port.
pub(in crate::discovery) fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(allowed)
}
