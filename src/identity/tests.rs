use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, SanType,
};
use toml::Value;

use super::*;

/// A certificate with these alternative names and this subject, in DER.
fn certificate(alternative: &[SanType], subject: &[(DnType, &str)]) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = alternative.to_vec();
    params.distinguished_name = DistinguishedName::new();
    for (attribute, value) in subject {
        params.distinguished_name.push(attribute.clone(), *value);
    }
    let key = KeyPair::generate().expect("a key");
    params.self_signed(&key).expect("a certificate").der().to_vec()
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("ASCII"))
}

fn dns(text: &str) -> SanType {
    SanType::DnsName(text.try_into().expect("ASCII"))
}

fn common_name(text: &str) -> [(DnType, &str); 1] {
    [(DnType::CommonName, text)]
}

fn rules(text: &str) -> Result<Rules, Vec<String>> {
    let mut table: toml::Table = text.parse().expect("TOML");
    let mut problems = Vec::new();
    let value = table.remove("identity").unwrap_or(Value::Boolean(false));
    let rules = Rules::from_value(value, "identity", &mut problems);
    if problems.is_empty() { Ok(rules) } else { Err(problems) }
}

fn name(rules: &Rules, leaf: &[u8]) -> Result<String, NoName> {
    rules.identify(&[leaf]).map(|identity| identity.name().to_owned())
}

#[test]
fn a_spiffe_id_is_the_name_else_the_common_name() {
    let rules = Rules::default();
    let spiffe = "spiffe://example.org/ns/ci/sa/builder";
    let leaf = certificate(&[dns("a.example"), uri(spiffe)], &common_name("someone"));
    let found = rules.identify(&[&leaf]).expect("a name");
    assert_eq!((found.name(), found.source()), (spiffe, "spiffe"));
    let leaf = certificate(&[uri("https://example.org"), dns("a.example")], &common_name("team-a"));
    let found = rules.identify(&[&leaf]).expect("a name");
    assert_eq!((found.name(), found.source()), ("team-a", "common-name"));
    let leaf = certificate(&[dns("a.example")], &[]);
    assert_eq!(name(&rules, &leaf), Err(NoName::NoneFits("spiffe or common-name".to_owned())));
}

#[test]
fn nothing_but_a_spiffe_id_passes_for_one() {
    let leaf = certificate(&[], &common_name("spiffe://example.org/admin"));
    assert!(name(&Rules::default(), &leaf).is_err());
    let two = [uri("spiffe://a.example/x"), uri("spiffe://b.example/x")];
    let ambiguous = NoName::Ambiguous { source_word: "spiffe", count: 2 };
    assert_eq!(name(&Rules::default(), &certificate(&two, &common_name("x"))), Err(ambiguous));
}

#[test]
fn the_first_rule_that_fits_decides_and_a_pattern_takes_all_of_a_value() {
    let rules = rules(
        "[[identity]]\nfrom = 'spiffe'\nregex = 'spiffe://example\\.org/ns/([^/]+)/.*'\n\
         [[identity]]\nfrom = 'dns'\nregex = '[a-z-]+\\.ci\\.example'\n\
         [[identity]]\nfrom = 'email'\n[[identity]]\nfrom = 'organization'",
    )
    .expect("valid");
    let email = SanType::Rfc822Name("dev@example.org".try_into().expect("ASCII"));
    let organization =
        [(DnType::OrganizationName, "Ops"), (DnType::CommonName, "no rule takes it")];
    for (alternative, expected) in [
        (vec![uri("spiffe://example.org/ns/team-a/sa/b"), dns("x.ci.example")], "team-a"),
        (
            vec![uri("spiffe://evil.org/spiffe://example.org/ns/team-a/sa/b"), email.clone()],
            "dev@example.org",
        ),
        (vec![dns("x.example"), dns("Y.ci.example"), email.clone()], "y.ci.example"),
        (vec![dns("y.ci.example.evil.org"), email], "dev@example.org"),
        (vec![], "Ops"),
    ] {
        let leaf = certificate(&alternative, &organization);
        assert_eq!(name(&rules, &leaf).as_deref(), Ok(expected));
    }
}

#[test]
fn names_that_nobody_can_have_are_refused() {
    let rules = Rules::default();
    let long = "x".repeat(MAX_NAME_LEN + 1);
    for (text, error) in [
        (&*long, NoName::TooLong("common-name")),
        ("a\nb", NoName::Unreadable("common-name")),
        (" ", NoName::Unreadable("common-name")),
    ] {
        assert_eq!(name(&rules, &certificate(&[], &common_name(text))), Err(error), "{text}");
    }
    let leaf = certificate(&[], &common_name("x"));
    assert_eq!(name(&rules, &[&leaf[..], b"more"].concat()), Err(NoName::NotACertificate));
    assert_eq!(name(&rules, b""), Err(NoName::NotACertificate));
}

#[test]
fn two_of_one_name_are_the_same_and_what_is_shown_is_escaped() {
    let [one, other] =
        ["spiffe", "dns"].map(|source| Identity::new("a\u{202e}b", source).expect("a name"));
    assert_eq!(one, other);
    assert_eq!(one.to_string(), "a\\u{202e}b");
}

#[test]
fn rules_are_checked_and_written_again() {
    let text =
        "[[identity]]\nfrom = 'dns'\nregex = '(.*)\\.example'\n[[identity]]\nfrom = 'common-name'";
    let read = rules(text).expect("valid");
    let mut problems = Vec::new();
    assert_eq!(Rules::from_value(read.to_value(), "identity", &mut problems), read);
    assert_eq!(problems, [] as [String; 0]);
    for (wrong, told) in [
        ("identity = 3", "must be a list of tables"),
        ("identity = []", "1 to 64 tables, found 0"),
        ("[[identity]]", "needs `from`"),
        ("[[identity]]\nfrom = 'cn'", "`cn` is not one of spiffe, dns"),
        ("[[identity]]\nfrom = 'dns'\nregex = '('", "`regex` is not valid"),
        ("[[identity]]\nfrom = 'dns'\nregex = '(a)(b)'", "2 groups"),
        ("[[identity]]\nfrom = 'dns'\nregex = 3", "must be a string"),
        ("[[identity]]\nfrom = 'dns'\nnme = 'x'", "unknown key `nme`"),
        (
            "[[identity]]\nfrom = 'dns'\n[[identity]]\nfrom = 'dns'\nregex = 'x'",
            "unreachable: an earlier",
        ),
    ] {
        let problems = rules(wrong).expect_err(wrong);
        assert!(problems[0].starts_with("identity") && problems[0].contains(told), "{problems:?}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(der: Vec<u8>) {
        let _ = Rules::default().identify(&[&der]);
    }

    #[test]
    fn a_certificate_with_any_byte_changed_is_read_or_refused(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        end in any::<prop::sample::Index>(),
        cut: bool,
    ) {
        let mut leaf = sample();
        for (at, byte) in changes {
            let at = at.index(leaf.len());
            leaf[at] = byte;
        }
        if cut {
            leaf.truncate(end.index(leaf.len()));
        }
        let rules = rules(
            "identity = [{from='spiffe'}, {from='dns'}, {from='email'}, {from='common-name'}, {from='organization'}]",
        ).expect("valid");
        if let Ok(identity) = rules.identify(&[&leaf]) {
            prop_assert!(identity.name().len() <= MAX_NAME_LEN && !identity.name().contains('\n'));
        }
    }
}

/// A certificate with a name in each place, made once.
fn sample() -> Vec<u8> {
    static SAMPLE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    let make = || {
        let alternative = [uri("spiffe://a.example/x"), dns("a.example")];
        certificate(&alternative, &[(DnType::CommonName, "x"), (DnType::OrganizationName, "y")])
    };
    SAMPLE.get_or_init(make).clone()
}

#[test]
fn a_file_has_certificates_in_pem_or_is_one_in_der() {
    let key = KeyPair::generate().expect("a key");
    let leaf = CertificateParams::default().self_signed(&key).expect("a certificate");
    let der = leaf.der().to_vec();
    assert_eq!(certificate_chain(&der), Ok(vec![der.clone()]));
    let chain = format!("{}{}{}", key.serialize_pem(), leaf.pem(), leaf.pem());
    assert_eq!(certificate_chain(chain.as_bytes()), Ok(vec![der.clone(), der]));
    let key = certificate_chain(key.serialize_pem().as_bytes());
    assert_eq!(key, Err(NoName::NotACertificate));
}

#[test]
fn a_rule_with_a_ca_is_about_the_certificates_that_the_ca_has_signed() {
    let directory = tempfile::tempdir().expect("a directory");
    let authority = |name: &str| {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        let path = directory.path().join(name);
        std::fs::write(&path, pem).expect("written");
        (Issuer::new(params, key), path.display().to_string())
    };
    let ((a, a_file), (b, b_file)) = (authority("a"), authority("b"));
    let signed = |issuer: &Issuer<'_, KeyPair>, name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().expect("a key");
        params.signed_by(&key, issuer).expect("signed").der().to_vec()
    };
    let text = format!(
        "[[identity]]\nfrom = 'common-name'\nregex = 'team-a-.*'\nca = '{a_file}'\n\
         [[identity]]\nfrom = 'common-name'\nregex = 'team-b-.*'\nca = '{b_file}'\n"
    );
    let rules = rules(&text).expect("valid");
    assert_eq!(name(&rules, &signed(&a, "team-a-1")), Ok("team-a-1".to_owned()));
    assert_eq!(name(&rules, &signed(&b, "team-b-1")), Ok("team-b-1".to_owned()));
    for other in [signed(&a, "team-b-1"), signed(&b, "team-a-1")] {
        assert!(matches!(name(&rules, &other), Err(NoName::NoneFits(_))));
    }
    let mut problems = Vec::new();
    let again = Rules::from_value(rules.to_value(), "identity", &mut problems);
    assert_eq!((again, problems), (rules, Vec::new()));
}

#[test]
fn a_ca_that_cannot_be_used_is_told() {
    let missing = rules("[[identity]]\nfrom = 'dns'\nca = '/no/such'").expect_err("no file");
    assert!(missing[0].starts_with("identity[0]: `ca`: cannot read"), "{missing:?}");
    let odd = rules("[[identity]]\nfrom = 'dns'\nca = 1").expect_err("no path");
    assert!(odd[0].contains("`ca` must be a string"), "{odd:?}");
}
