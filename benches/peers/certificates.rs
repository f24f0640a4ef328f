//! One authority and one certificate, which client, proxy and daemon show each other.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// A directory with ca.pem, cert.pem, key.pem, and the last two in one file for HAProxy.
#[derive(Debug)]
pub(crate) struct Certificates(PathBuf);

impl Certificates {
    /// Makes them in `dir`: for 127.0.0.1, and for `daemon.test`, since nginx compares names alone.
    pub(crate) fn create(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let mut authority = CertificateParams::new(Vec::<String>::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Another name than the certificate's, which OpenSSL would take for one that signs itself.
        authority.distinguished_name.push(DnType::CommonName, "authority");
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let authority_key = KeyPair::generate()?;
        let ca = authority.self_signed(&authority_key)?.pem();
        let mut params =
            CertificateParams::new(["127.0.0.1", "daemon.test"].map(str::to_owned).to_vec())?;
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &Issuer::new(authority, authority_key))?.pem();
        let key = key.serialize_pem();
        fs::write(dir.join("ca.pem"), ca)?;
        fs::write(dir.join("both.pem"), format!("{certificate}{key}"))?;
        fs::write(dir.join("cert.pem"), certificate)?;
        fs::write(dir.join("key.pem"), key)?;
        Ok(Self(dir.to_owned()))
    }

    /// Where they are.
    pub(crate) fn dir(&self) -> String {
        self.0.display().to_string()
    }

    /// The flags of buildkitd and of buildctl that name them.
    pub(crate) fn flags(&self) -> Vec<String> {
        [("tlscacert", "ca.pem"), ("tlscert", "cert.pem"), ("tlskey", "key.pem")]
            .map(|(flag, file)| format!("--{flag}={}", self.0.join(file).display()))
            .to_vec()
    }
}
