//! The names in a certificate.

use x509_parser::{
    certificate::X509Certificate, extensions::GeneralName, pem::Pem, prelude::FromDer as _,
    x509::X509Name,
};

use super::NoName;
use crate::label::label_set;

/// The scheme of SPIFFE IDs. URIs with other schemes do not count, because a name that was meant for another
/// purpose must not identify a client.
const SPIFFE_SCHEME: &str = "spiffe://";

/// Whether `name` is a SPIFFE ID.
pub(super) fn is_spiffe(name: &str) -> bool {
    name.starts_with(SPIFFE_SCHEME)
}

label_set! {
    /// The part of a certificate that contains a name.
    pub(super) enum Source {
        /// The URI that is a SPIFFE ID.
        Spiffe = "spiffe",
        /// A DNS name in the subject alternative names.
        Dns = "dns",
        /// An e-mail address in the subject alternative names.
        Email = "email",
        /// The common name of the subject.
        CommonName = "common-name",
        /// The organisation of the subject.
        Organization = "organization",
    }
}

impl Source {
    /// Whether several values would leave open who the client is. A certificate often has several host names. But a
    /// SPIFFE ID is the only one in its certificate (SPIFFE X.509-SVID section 2), and programs differ in which of
    /// two common names they use.
    fn is_single(self) -> bool {
        matches!(self, Self::Spiffe | Self::CommonName)
    }
}

/// A parsed certificate. The caller has verified it.
#[derive(Debug)]
pub(super) struct Certificate<'a>(X509Certificate<'a>);

impl<'a> Certificate<'a> {
    pub(super) fn read(der: &'a [u8]) -> Result<Self, NoName> {
        match X509Certificate::from_der(der) {
            Ok(([], certificate)) => Ok(Self(certificate)),
            _ => Err(NoName::NotACertificate),
        }
    }

    /// The values of `source`, in the order of the certificate.
    pub(super) fn values(&self, source: Source) -> Result<Vec<String>, NoName> {
        let values: Vec<String> = match source {
            Source::Spiffe | Source::Dns | Source::Email => self.alternative_names(source)?,
            Source::CommonName | Source::Organization => texts(self.0.subject(), source)?,
        };
        let fits = |value: &String| is_spiffe(value) == (source == Source::Spiffe);
        let values: Vec<_> = values.into_iter().filter(fits).collect();
        match values.len() {
            count @ 2.. if source.is_single() => {
                Err(NoName::Ambiguous { source_word: source.label(), count })
            }
            _ => Ok(values),
        }
    }

    fn alternative_names(&self, source: Source) -> Result<Vec<String>, NoName> {
        let names =
            self.0.subject_alternative_name().map_err(|_malformed| NoName::NotACertificate)?;
        let names = names.into_iter().flat_map(|extension| &extension.value.general_names);
        let value = |name: &GeneralName<'_>| match (source, name) {
            (Source::Spiffe, GeneralName::URI(uri)) => Some((*uri).to_owned()),
            (Source::Dns, GeneralName::DNSName(name)) => Some(name.to_ascii_lowercase()),
            (Source::Email, GeneralName::RFC822Name(address)) => Some((*address).to_owned()),
            _ => None,
        };
        Ok(names.filter_map(value).collect())
    }
}

/// The certificates of a file, in DER. Those of a PEM file are its certificate blocks; any other file is one in DER.
///
/// # Errors
/// The file is PEM without a certificate.
pub fn chain(file: &[u8]) -> Result<Vec<Vec<u8>>, NoName> {
    const BEGIN: &[u8] = b"-----BEGIN ";
    if !file.windows(BEGIN.len()).any(|bytes| bytes == BEGIN) {
        return Ok(vec![file.to_vec()]);
    }
    let blocks = Pem::iter_from_buffer(file).map_while(Result::ok);
    let certificates = blocks.filter(|block| block.label == "CERTIFICATE");
    let chain: Vec<_> = certificates.map(|block| block.contents).collect();
    if chain.is_empty() { Err(NoName::NotACertificate) } else { Ok(chain) }
}

/// The values of an attribute of the subject.
fn texts(subject: &X509Name<'_>, source: Source) -> Result<Vec<String>, NoName> {
    let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        let text = attribute.as_str().map(str::to_owned);
        text.map_err(|_not_text| NoName::Unreadable(source.label()))
    };
    match source {
        Source::CommonName => subject.iter_common_name().map(text).collect(),
        _ => subject.iter_organization().map(text).collect(),
    }
}
