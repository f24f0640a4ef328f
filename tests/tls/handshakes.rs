//! Who may connect: real clients and daemons, each with good and with bad certificates.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::Output,
    time::Duration,
};

use rcgen::ExtendedKeyUsagePurpose;

use crate::{
    authorities::{Authorities, builds, workers},
    support::{
        buildkitd::Buildkitd,
        certificates::{Authority, Request, Validity},
        client::{Buildx, Context, buildctl, buildctl_tls, run, succeed, text},
        eventually, free_port,
        proxy::{Builder, Proxy},
    },
};

#[tokio::test(flavor = "multi_thread")]
async fn buildctl_and_buildx_build_with_mutual_tls_through_to_daemons() {
    let authorities = Authorities::new();
    let daemons = [authorities.daemon("d0", &Request::SERVER)];
    let proxy = authorities.proxy(&daemons).start();
    proxy.wait_ready(1, Duration::from_secs(20));
    let client = authorities.clients.directory("client", &Request::CLIENT);
    builds(&proxy, &client, "buildctl");
    let buildx = Buildx::with_tls(&proxy.addr(), &client);
    let context = Context::busybox("COPY large /large\nRUN wc -c /large");
    context.write("large", vec![b'x'; 20 << 20]);
    let out = buildx.file("out");
    let output = format!("type=local,dest={}", out.display());
    let mut command = buildx.command(&["build", "--progress=plain", "--output", &output]);
    succeed(command.arg(context.path()));
    assert_eq!(std::fs::read(out.join("large")).expect("exported"), vec![b'x'; 20 << 20]);
    let listening = proxy.records("listening");
    assert!(listening.iter().any(|fields| fields["tls"] == true), "{listening:?}");
    let expiry = "buildkit_lb_certificate_expiry_timestamp_seconds";
    for side in ["side=\"client\"", "side=\"backend\""] {
        assert_eq!(proxy.metric(expiry, &[side]), 4_070_908_800.0, "the first of January 2099");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_may_not_connect_is_told_why_and_so_is_the_log() {
    let authorities = Authorities::new();
    let daemons = [authorities.daemon("d0", &Request::SERVER)];
    let proxy = authorities.proxy(&daemons).start();
    let clients = &authorities.clients;
    let stranger = Authority::new("of somebody else");
    let trusting = |directory: &Path| {
        std::fs::write(directory.join("ca.pem"), clients.pem()).expect("written");
        directory.to_owned()
    };
    let own = |name, validity| clients.directory(name, &Request { validity, ..Request::CLIENT });
    let server_only = Request { usages: &[ExtendedKeyUsagePurpose::ServerAuth], ..Request::CLIENT };
    let cases = [
        ("tls_unknown_ca", trusting(&stranger.directory("client", &Request::CLIENT))),
        ("tls_expired", own("expired", Validity::Expired)),
        ("tls_not_yet_valid", own("early", Validity::NotYet)),
        ("tls_wrong_purpose", clients.directory("purpose", &server_only)),
        ("tls_refused", stranger.directory("distrusts", &Request::CLIENT)),
    ];
    for (reason, directory) in cases {
        refused(&proxy, reason, &workers(&proxy, &directory));
    }
    let ca = clients.directory("none", &Request::CLIENT).join("ca.pem");
    let mut bare = buildctl(&proxy.addr());
    bare.arg("--tlscacert").arg(&ca);
    let output = run(bare.args(["debug", "workers"]));
    refused(&proxy, "tls_no_certificate", &output);
    assert!(text(&output).contains("certificate required"), "{}", text(&output));
    let mut other = buildctl_tls(&proxy.addr(), &own("other", Validity::Now));
    let output = run(other.args(["--tlsservername", "elsewhere.test", "debug", "workers"]));
    assert!(text(&output).contains("elsewhere.test"), "{}", text(&output));
    refused(&proxy, "tls_refused", &output);
    builds(&proxy, &own("good", Validity::Now), "after all of them");
}

fn refused(proxy: &Proxy, reason: &str, output: &Output) {
    assert!(!output.status.success(), "{reason}: {}", text(output));
    eventually(&format!("{reason} is told"), Duration::from_secs(10), || {
        let counted = format!("reason=\"{reason}\"");
        let count = proxy.metric("buildkit_lb_connection_errors_total", &[&counted]);
        let told = proxy.records("TLS handshake failed");
        let told = told.iter().any(|fields| fields["reason"] == reason);
        (count > 0.0 && told).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_not_who_it_should_be_gets_no_call_and_the_log_says_why() {
    let authorities = Authorities::new();
    let stranger = Authority::new("of somebody else");
    let server = |validity| Request { validity, ..Request::SERVER };
    let elsewhere = Request { names: &["elsewhere.test"], ..Request::SERVER };
    let own = stranger.directory("daemon", &Request::SERVER);
    // This client accepts the proxy's certificate and has one that the proxy does not accept.
    std::fs::write(own.join("ca.pem"), authorities.daemons.pem()).expect("written");
    let tester = authorities.daemons.directory("tester-of-stranger", &Request::CLIENT);
    std::fs::write(tester.join("ca.pem"), stranger.pem()).expect("written");
    // This client has a good certificate and does not accept the proxy's.
    let distrusts = authorities.daemons.directory("distrusts", &Request::SERVER);
    std::fs::write(distrusts.join("ca.pem"), stranger.pem()).expect("written");
    let strangers_tester = stranger.directory("tester", &Request::CLIENT);
    std::fs::write(strangers_tester.join("ca.pem"), authorities.daemons.pem()).expect("written");
    let daemons = [
        Buildkitd::start_tls("stranger", &own, &tester),
        Buildkitd::start_tls("distrusts", &distrusts, &strangers_tester),
        authorities.daemon("good", &Request::SERVER),
    ];
    let odd = [
        ("expired", server(Validity::Expired)),
        ("early", server(Validity::NotYet)),
        ("elsewhere", elsewhere),
    ];
    let servers: Vec<_> = odd
        .iter()
        .map(|(name, request)| TlsServer::start(name, &authorities.daemons, request))
        .collect();
    let mut builder = authorities.proxy(&daemons);
    for server in &servers {
        builder = builder.backend(&server.backend());
    }
    let proxy = builder.start();
    proxy.wait_ready(1, Duration::from_secs(20));
    let client = authorities.clients.directory("client", &Request::CLIENT);
    builds(&proxy, &client, "on the good one");
    for (name, words) in [
        ("stranger", "signed by none of the authorities"),
        ("distrusts", "the daemon refuses"),
        ("expired", "has expired"),
        ("early", "is not valid yet"),
        ("elsewhere", "not for `127.0.0.1` but for"),
    ] {
        eventually(&format!("{name} is ejected"), Duration::from_secs(30), || {
            let told = proxy.records("backend ejected");
            let mut told = told.iter().filter(|fields| fields["backend"] == name);
            told.any(|fields| {
                let error = fields["error"].as_str().unwrap_or_default();
                fields["fault"] == "tls" && error.contains(words)
            })
            .then_some(())
        });
    }
}

/// A server that completes handshakes with a certificate with which no daemon starts.
struct TlsServer {
    name: String,
    port: u16,
}

impl TlsServer {
    fn start(name: &str, authority: &Authority, request: &Request<'_>) -> Self {
        let (certificate, key) = authority.sign(request);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let config = server_config(&certificate, &key);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                let Ok(mut session) = rustls::ServerConnection::new(config.clone()) else {
                    continue;
                };
                while session.is_handshaking() && session.complete_io(&mut stream).is_ok() {}
            }
        });
        Self { name: name.to_owned(), port }
    }

    fn backend(&self) -> String {
        format!("{}=tcp://127.0.0.1:{}", self.name, self.port)
    }
}

fn server_config(certificate: &str, key: &str) -> std::sync::Arc<rustls::ServerConfig> {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM");
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("supported")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("a pair");
    config.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_others_reach_and_that_needs_no_certificate_says_so_once() {
    let authorities = Authorities::new();
    let own = authorities.clients.directory("proxy", &Request::SERVER);
    let own = own.to_str().expect("UTF-8");
    let warned = |listen: &str, args: &[&str]| {
        let file = format!("listen = ['{listen}']\n");
        let daemon = format!("b=tcp://127.0.0.1:{}", free_port());
        let proxy = Builder::default().backend(&daemon).file(&file).args(args).start();
        let message = "clients need no certificate: everybody who reaches this address may build";
        proxy.records(message).len()
    };
    assert_eq!(warned("tcp://0.0.0.0:0", &[]), 1);
    assert_eq!(warned("tcp://127.0.0.1:0", &[]), 0);
    assert_eq!(warned("tcp://0.0.0.0:0", &["--tls-dir", own]), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_speak_tls_is_told_apart_on_a_tls_port() {
    let authorities = Authorities::new();
    let daemons = [Buildkitd::start("plain")];
    let own = authorities.clients.directory("proxy", &Request::SERVER);
    let own = own.to_str().expect("UTF-8");
    let proxy = Proxy::in_front_of(&daemons).args(&["--tls-dir", own]).start();
    let kinds: [(&str, &[u8]); 4] = [
        ("plain_http2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"),
        ("http1", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"),
        ("proxy_header", b"PROXY TCP4 10.1.2.3 10.0.0.2 5 6\r\n"),
        ("not_http2", b"SSH-2.0-OpenSSH_9.2\r\n"),
    ];
    for (kind, bytes) in kinds {
        let mut stream = TcpStream::connect(proxy.socket()).expect("accepted");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
        stream.write_all(bytes).expect("sent");
        let mut answer = String::new();
        // A reset counts as closing.
        let _ = stream.read_to_string(&mut answer);
        assert_eq!(answer.ends_with("with TLS.\n"), kind == "http1", "{kind}: {answer}");
    }
    for (kind, _bytes) in kinds {
        eventually(&format!("{kind} is told"), Duration::from_secs(10), || {
            let counted = format!("reason=\"{kind}\"");
            let count = proxy.metric("buildkit_lb_connection_errors_total", &[&counted]);
            let told = proxy.records("client does not speak the protocol of this port");
            let told = told.iter().any(|fields| fields["kind"] == kind);
            (count == 1.0 && told).then_some(())
        });
    }
    let client = authorities.clients.directory("client", &Request::CLIENT);
    builds(&proxy, &client, "over TLS to a plain daemon");
}
