//! Certificate authorities, and the certificates that they sign.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};

/// An authority with a directory for the certificates that it signs.
#[derive(Debug)]
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    directory: tempfile::TempDir,
}

/// The validity of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Validity {
    Now,
    Expired,
    NotYet,
}

/// A certificate before it is signed.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    /// The subject's common name.
    pub(crate) name: &'a str,
    /// The DNS names, IP addresses and URIs in the certificate.
    pub(crate) names: &'a [&'a str],
    /// Whether the certificate is for a server, for a client, or for both.
    pub(crate) usages: &'a [ExtendedKeyUsagePurpose],
    /// The validity.
    pub(crate) validity: Validity,
}

impl Request<'_> {
    /// A certificate for a server at 127.0.0.1 with the name `proxy.test`.
    pub(crate) const SERVER: Self = Request {
        name: "server",
        names: &["127.0.0.1", "proxy.test"],
        usages: &[ExtendedKeyUsagePurpose::ServerAuth],
        validity: Validity::Now,
    };

    /// A certificate for a client.
    pub(crate) const CLIENT: Self = Request {
        name: "client",
        names: &["client.test"],
        usages: &[ExtendedKeyUsagePurpose::ClientAuth],
        validity: Validity::Now,
    };
}

impl Authority {
    /// Makes a new authority.
    pub(crate) fn new(name: &str) -> Self {
        let mut params = params(name, &[], Validity::Now);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("signed").pem();
        let directory = tempfile::tempdir().expect("a directory");
        Self { issuer: Issuer::new(params, key), pem, directory }
    }

    /// The authority's own certificate, in PEM.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// Signs a certificate; returns the certificate and its key, both in PEM.
    pub(crate) fn sign(&self, request: &Request<'_>) -> (String, String) {
        let mut params = params(request.name, request.names, request.validity);
        params.extended_key_usages = request.usages.to_vec();
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        (certificate.pem(), key.serialize_pem())
    }

    /// Makes a directory with a certificate, its key and this authority's certificate, under both conventions of file
    /// names.
    pub(crate) fn directory(&self, name: &str, request: &Request<'_>) -> PathBuf {
        let directory = self.directory.path().join(name);
        fs::create_dir_all(&directory).expect("a directory");
        let (certificate, key) = self.sign(request);
        write(&directory, [Some(&certificate), Some(&key), Some(&self.pem)]);
        directory
    }
}

/// Writes certificate, key and authority into `directory`.
pub(crate) fn write(directory: &Path, contents: [Option<&String>; 3]) {
    let habits = [["tls.crt", "tls.key", "ca.crt"], ["cert.pem", "key.pem", "ca.pem"]];
    for names in habits {
        for (name, content) in names.iter().zip(contents) {
            if let Some(content) = content {
                fs::write(directory.join(name), content).expect("written");
            }
        }
    }
}

fn params(name: &str, names: &[&str], validity: Validity) -> CertificateParams {
    let (uris, plain): (Vec<&str>, Vec<&str>) = names.iter().partition(|name| name.contains("://"));
    let plain: Vec<_> = plain.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(plain).expect("valid names");
    for uri in uris {
        let uri = uri.try_into().expect("ASCII");
        params.subject_alt_names.push(rcgen::SanType::URI(uri));
    }
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    (params.not_before, params.not_after) = match validity {
        Validity::Now => (date_time_ymd(2020, 1, 1), date_time_ymd(2099, 1, 1)),
        Validity::Expired => (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1)),
        Validity::NotYet => (date_time_ymd(2098, 1, 1), date_time_ymd(2099, 1, 1)),
    };
    params
}
