//! Where spans are exported to, in the words of OpenTelemetry's own variables.
//!
//! The library that exports reads the other variables itself: headers, time limit, sampler and resource attributes.

use std::{env, fmt, str::FromStr};

use http::Uri;

use crate::traces::Config;

/// A collector that is reached over gRPC: `http://HOST:PORT`, or `https://HOST:PORT` for TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collector(String);

impl FromStr for Collector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let problem = || format!("`{text}` is not http://HOST:PORT or https://HOST:PORT");
        let uri: Uri = text.parse().map_err(|_invalid| problem())?;
        let known = matches!(uri.scheme_str(), Some("http" | "https"));
        if !known || uri.port_u16().is_none() || !matches!(uri.path(), "" | "/") {
            return Err(problem());
        }
        Ok(Self(text.trim_end_matches('/').to_owned()))
    }
}

impl fmt::Display for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Reads a variable of the environment.
pub(super) fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// The value of `OTEL_EXPORTER_OTLP_TRACES_…`, or else of `OTEL_EXPORTER_OTLP_…`.
fn otlp(name: &str, variable: &impl Fn(&str) -> Option<String>) -> Option<(String, String)> {
    let names =
        ["OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_"].map(|part| part.to_owned() + name);
    names.into_iter().find_map(|name| variable(&name).map(|value| (name, value)))
}

/// The endpoint that the variables name, if spans are wanted.
///
/// # Errors
/// The endpoint cannot be used, or another protocol than gRPC is asked for.
pub(super) fn endpoint(
    variable: &impl Fn(&str) -> Option<String>,
) -> Result<Option<Collector>, String> {
    let is =
        |name, word: &str| variable(name).is_some_and(|value| value.eq_ignore_ascii_case(word));
    if is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none") {
        return Ok(None);
    }
    let Some((name, value)) = otlp("ENDPOINT", variable) else { return Ok(None) };
    if let Some((name, protocol)) = otlp("PROTOCOL", variable).filter(|(_, value)| value != "grpc")
    {
        return Err(format!("{name}: spans are exported over grpc only, not over {protocol}"));
    }
    value.parse().map(Some).map_err(|problem| format!("{name}: {problem}"))
}

/// The whole configuration of an export to `endpoint`.
pub(super) fn config(endpoint: Collector, variable: &impl Fn(&str) -> Option<String>) -> Config {
    let file = |name| otlp(name, variable).map(|(_, path)| path.into());
    Config {
        endpoint: endpoint.0,
        ca: file("CERTIFICATE"),
        identity: file("CLIENT_CERTIFICATE").zip(file("CLIENT_KEY")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_opentelemetry_name_the_endpoint_and_its_files() {
        type Variables = [(&'static str, &'static str)];
        let set = |variables: &Variables| {
            let variables = variables.to_vec();
            move |name: &str| {
                let found = variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).to_owned())
            }
        };
        let found = |variables: &Variables| {
            endpoint(&set(variables)).map(|found| found.map(|found| found.to_string()))
        };
        assert_eq!(found(&[]), Ok(None));
        let plain = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:4317");
        let other_protocol = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
        let all = [
            plain,
            other_protocol,
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://traces:4317/"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
            ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/own.pem"),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/key.pem"),
        ];
        assert_eq!(found(&all), Ok(Some("https://traces:4317".to_owned())));
        let expected = Config {
            endpoint: "http://set:1".to_owned(),
            ca: Some("/ca.pem".into()),
            identity: Some(("/own.pem".into(), "/key.pem".into())),
        };
        let given: Collector = "http://set:1".parse().expect("valid");
        assert_eq!(config(given, &set(&all)), expected);
        for off in [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")] {
            assert_eq!(found(&[plain, off]), Ok(None));
        }
        let problem = found(&[plain, other_protocol]).expect_err("another protocol");
        assert!(problem.contains("OTEL_EXPORTER_OTLP_PROTOCOL: "), "{problem}");
        for bad in ["collector:4317", "http://collector", "ftp://c:1", "http://c:1/v1/traces", ""] {
            assert!(bad.parse::<Collector>().is_err(), "{bad}");
        }
    }
}
