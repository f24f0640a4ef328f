//! TLS 1.2 and resumed sessions: a TLS server that is no current `buildkitd`.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use rustls::{
    HandshakeKind, ProtocolVersion, ServerConfig, SupportedProtocolVersion,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    version::{TLS12, TLS13},
};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{
    buildkitd::Buildkitd,
    certificates::{Authority, Request},
    client::{Context, build, buildctl, run, text},
    eventually,
    proxy::{Builder, Proxy},
    raw_client::RawClient,
};

/// What one handshake was.
type Handshake = (ProtocolVersion, HandshakeKind);

/// A server that decrypts what it receives, and passes it on to a daemon without TLS.
struct Terminator {
    address: String,
    handshakes: Arc<Mutex<Vec<Handshake>>>,
}

impl Terminator {
    /// Starts a server with the certificate in `directory`.
    async fn start(
        directory: &Path,
        version: &'static SupportedProtocolVersion,
        daemon: &Buildkitd,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        let acceptor = tokio_rustls::TlsAcceptor::from(config(directory, version));
        let daemon = daemon.addr().trim_start_matches("tcp://").to_owned();
        let handshakes = Arc::<Mutex<Vec<Handshake>>>::default();
        let seen = Arc::clone(&handshakes);
        tokio::spawn(async move {
            while let Ok((stream, _peer)) = listener.accept().await {
                let (acceptor, daemon) = (acceptor.clone(), daemon.clone());
                let seen = Arc::clone(&seen);
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let session = stream.get_ref().1;
                    let shaken = session.protocol_version().zip(session.handshake_kind());
                    seen.lock().expect("unpoisoned").extend(shaken);
                    let Ok(mut daemon) = TcpStream::connect(daemon).await else { return };
                    let _ = tokio::io::copy_bidirectional(&mut stream, &mut daemon).await;
                });
            }
        });
        Self { address, handshakes }
    }

    fn count(&self, wanted: impl Fn(&Handshake) -> bool) -> usize {
        self.handshakes.lock().expect("unpoisoned").iter().filter(|one| wanted(one)).count()
    }
}

fn config(directory: &Path, version: &'static SupportedProtocolVersion) -> Arc<ServerConfig> {
    let read = |name: &str| std::fs::read(directory.join(name)).expect("a file");
    let certificate = CertificateDer::from_pem_slice(&read("tls.crt")).expect("PEM");
    let key = PrivateKeyDer::from_pem_slice(&read("tls.key")).expect("PEM");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .expect("supported")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("a pair");
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.into()
}

/// A proxy that reaches its only daemon by way of `terminator`, whose authority is in `directory`.
fn proxy(terminator: &Terminator, directory: &Path) -> Proxy {
    let directory = directory.to_str().expect("UTF-8");
    Builder::default()
        .backend(&format!("d0=tcp://{}", terminator.address))
        .args(&["--backend-tls-ca", &format!("{directory}/ca.pem")])
        .start()
}

fn builds(proxy: &Proxy, step: &str) {
    let context = Context::busybox(&format!("RUN echo {step}"));
    let output = run(&mut build(buildctl(&proxy.addr()), &context));
    assert!(output.status.success(), "{}", text(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_to_a_daemon_resume_the_session_of_an_earlier_one() {
    let authority = Authority::new("of daemons");
    let own = authority.directory("daemon", &Request::SERVER);
    let daemon = Buildkitd::start("behind");
    for version in [&TLS13, &TLS12] {
        let terminator = Terminator::start(&own, version, &daemon).await;
        let proxy = proxy(&terminator, &own);
        proxy.wait_ready(1, Duration::from_secs(20));
        eventually("a build resumes a session", Duration::from_secs(60), || {
            builds(&proxy, "over TLS");
            let resumed = |one: &Handshake| *one == (version.version, HandshakeKind::Resumed);
            (terminator.count(resumed) > 0).then_some(())
        });
        let full = terminator.count(|(_version, kind)| *kind == HandshakeKind::Full);
        assert!(full > 0, "the first handshake has nothing to resume");
        assert_eq!(terminator.count(|one| one.0 != version.version), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_may_speak_tls_1_2_or_1_3_and_resumes_nothing() {
    let authority = Authority::new("of clients");
    let own = authority.directory("proxy", &Request::SERVER);
    let own = own.to_str().expect("UTF-8");
    let client = authority.directory("client", &Request::CLIENT);
    let daemon = Buildkitd::start("plain");
    let proxy = Proxy::in_front_of([&daemon]).args(&["--tls-dir", own]).start();
    proxy.wait_ready(1, Duration::from_secs(20));
    for version in [&TLS12, &TLS13] {
        let config = RawClient::certified(&client, &[version]);
        for _connection in 0..3 {
            let (client, shaken) =
                RawClient::connect_with(&proxy.socket(), Arc::clone(&config)).await;
            assert_eq!(shaken, Some((version.version, HandshakeKind::Full)));
            assert_eq!(client.control("ListWorkers").await.ended().await.code(), Some(0));
        }
    }
}
