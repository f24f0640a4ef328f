//! A client that makes a build's calls one by one, each over any connection.

use std::{path::Path, sync::Arc, time::Duration};

use buildkit_lb::wire::{
    self,
    control::{Attr, RefRequest, SolveRequest},
};
use bytes::Bytes;
use h2::{
    Reason, RecvStream, SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use rustls::{
    ClientConfig, ConfigBuilder, HandshakeKind, ProtocolVersion, RootCertStore,
    SupportedProtocolVersion,
    client::WantsClientCert,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpSocket, TcpStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

const CONTROL: &str = "/moby.buildkit.v1.Control/";
const BRIDGE: &str = "/moby.buildkit.v1.frontend.LLBBridge/";

/// The longest time that any answer may take.
const LIMIT: Duration = Duration::from_secs(20);

/// One connection.
#[derive(Clone)]
pub(crate) struct RawClient {
    sender: SendRequest<Bytes>,
    /// The metadata of each call.
    always: Vec<(String, String)>,
}

/// A call in flight.
pub(crate) struct Call {
    pub(crate) upload: SendStream<Bytes>,
    response: ResponseFuture,
}

/// A call whose response headers have come.
pub(crate) struct Answered {
    pub(crate) headers: HeaderMap,
    pub(crate) body: RecvStream,
    pub(crate) upload: SendStream<Bytes>,
}

/// A call that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Empty for a response of trailers only.
    pub(crate) trailers: HeaderMap,
    pub(crate) reset: Option<Reason>,
}

impl Ended {
    /// The grpc-status, from headers or trailers.
    pub(crate) fn code(&self) -> Option<i32> {
        let value = self.trailers.get("grpc-status").or_else(|| self.headers.get("grpc-status"))?;
        value.to_str().ok()?.parse().ok()
    }

    /// The grpc-message, from headers or trailers.
    pub(crate) fn message(&self) -> String {
        let value = self.trailers.get("grpc-message").or_else(|| self.headers.get("grpc-message"));
        value
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            .unwrap_or_default()
    }

    /// The header that marks the proxy's own errors.
    pub(crate) fn marker(&self) -> Option<&str> {
        let name = "buildkit-lb-error";
        self.trailers.get(name).or_else(|| self.headers.get(name))?.to_str().ok()
    }
}

impl RawClient {
    /// Connects to `socket`, `HOST:PORT`.
    pub(crate) async fn connect(socket: &str) -> Self {
        Self::over(TcpStream::connect(socket).await.expect("the proxy accepts")).await
    }

    /// Connects to `socket`, and gives no answer a window for its body.
    pub(crate) async fn reading_nothing(socket: &str) -> Self {
        let stream = TcpStream::connect(socket).await.expect("the proxy accepts");
        Self::with_window(stream, 0).await
    }

    /// Connects to `socket` from this address of the machine.
    pub(crate) async fn connect_from(address: &str, socket: &str) -> Self {
        Self::over(stream_from(address, socket).await).await
    }

    /// Connects to `socket` with the certificate in `directory`. The server's certificate must have its address.
    pub(crate) async fn connect_tls(socket: &str, directory: &Path) -> Self {
        let stream = TcpStream::connect(socket).await.expect("the proxy accepts");
        Self::over_tls(stream, directory).await
    }

    /// [`Self::connect_tls`] from this address of the machine.
    pub(crate) async fn connect_tls_from(address: &str, socket: &str, directory: &Path) -> Self {
        Self::over_tls(stream_from(address, socket).await, directory).await
    }

    /// Connects to `socket`, whose authority is in `directory`, without a certificate.
    pub(crate) async fn connect_tls_anonymous(socket: &str, directory: &Path) -> Self {
        let stream = TcpStream::connect(socket).await.expect("the proxy accepts");
        let config = trusting(directory, rustls::ALL_VERSIONS).with_no_client_auth();
        Self::speak(shake(stream, Arc::new(config)).await, 65_535).await
    }

    /// The same connection with further metadata on each call.
    pub(crate) fn with(&self, name: &str, value: &str) -> Self {
        let mut always = self.always.clone();
        always.push((name.to_owned(), value.to_owned()));
        Self { sender: self.sender.clone(), always }
    }

    /// A configuration with the certificate in `directory` and these versions of TLS.
    pub(crate) fn certified(
        directory: &Path,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Arc<ClientConfig> {
        let (certificate, key) = (read(directory, "tls.crt"), read(directory, "tls.key"));
        let certificate = CertificateDer::from_pem_slice(&certificate).expect("a certificate");
        let key = PrivateKeyDer::from_pem_slice(&key).expect("a key");
        let config = trusting(directory, versions).with_client_auth_cert(vec![certificate], key);
        Arc::new(config.expect("a key of the certificate"))
    }

    /// Connects to `socket` with `config`. Also returns what the handshake was.
    pub(crate) async fn connect_with(
        socket: &str,
        config: Arc<ClientConfig>,
    ) -> (Self, Option<(ProtocolVersion, HandshakeKind)>) {
        let stream = TcpStream::connect(socket).await.expect("the proxy accepts");
        let stream = shake(stream, config).await;
        let session = stream.get_ref().1;
        let shaken = session.protocol_version().zip(session.handshake_kind());
        (Self::speak(stream, 65_535).await, shaken)
    }

    async fn over_tls(stream: TcpStream, directory: &Path) -> Self {
        let config = Self::certified(directory, rustls::ALL_VERSIONS);
        Self::speak(shake(stream, config).await, 65_535).await
    }

    /// Makes a client on `stream`.
    pub(crate) async fn over(stream: TcpStream) -> Self {
        Self::with_window(stream, 65_535).await
    }

    async fn with_window(stream: TcpStream, stream_window: u32) -> Self {
        let _ = stream.set_nodelay(true);
        Self::speak(stream, stream_window).await
    }

    async fn speak(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        stream_window: u32,
    ) -> Self {
        let (sender, connection) = h2::client::Builder::new()
            .max_header_list_size(16 << 20)
            .initial_max_send_streams(100)
            .initial_window_size(stream_window)
            // As in grpc-go, a slow reader of one stream does not fill the window of the connection.
            .initial_connection_window_size(64 << 20)
            .handshake(stream)
            .await
            .expect("an HTTP/2 handshake");
        tokio::spawn(connection);
        Self { sender, always: Vec::new() }
    }

    /// Opens a stream.
    pub(crate) async fn call(&self, path: &str, headers: &[(&str, &str)]) -> Call {
        self.try_call(path, headers).await.expect("an open connection")
    }

    /// Opens a stream, unless the connection takes no more streams.
    pub(crate) async fn try_call(&self, path: &str, headers: &[(&str, &str)]) -> Option<Call> {
        let mut request = Request::post(format!("http://build.example:1234{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .expect("a request");
        let always = self.always.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in always.chain(headers.iter().copied()) {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a header name");
            request.headers_mut().append(name, HeaderValue::from_str(value).expect("a value"));
        }
        let mut sender = self.sender.clone().ready().await.ok()?;
        let (response, upload) = sender.send_request(request, false).ok()?;
        Some(Call { upload, response })
    }

    /// Opens a stream, sends one message and half-closes.
    pub(crate) async fn send(&self, path: &str, headers: &[(&str, &str)], message: Bytes) -> Call {
        let mut call = self.call(path, headers).await;
        // The proxy may have answered and reset the call before all of the message was sent.
        if super::fake_daemon::send(&mut call.upload, message).await.is_ok() {
            let _ = call.upload.send_data(Bytes::new(), true);
        }
        call
    }

    /// Control/Session.
    pub(crate) async fn session(&self, session: &str) -> Call {
        let headers = [("x-docker-expose-session-uuid", session)];
        self.call(&format!("{CONTROL}Session"), &headers).await
    }

    /// Control/Solve.
    pub(crate) async fn solve(&self, build: &str, session: &str) -> Call {
        self.solve_with(build, session, &[], &[]).await
    }

    /// Control/Solve with frontend attributes and metadata.
    pub(crate) async fn solve_with(
        &self,
        build: &str,
        session: &str,
        attrs: &[(&str, &str)],
        headers: &[(&str, &str)],
    ) -> Call {
        let attr = |(key, value): &(&str, &str)| Attr {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
        };
        let request = SolveRequest {
            r#ref: Bytes::copy_from_slice(build.as_bytes()),
            session: Bytes::copy_from_slice(session.as_bytes()),
            frontend_attrs: attrs.iter().map(attr).collect(),
            ..Default::default()
        };
        self.send(&format!("{CONTROL}Solve"), headers, wire::encode(&request)).await
    }

    /// A call of Control whose first field is a ref, such as Status.
    pub(crate) async fn by_ref(&self, method: &str, build: &str) -> Call {
        let request = RefRequest { r#ref: Bytes::copy_from_slice(build.as_bytes()) };
        self.send(&format!("{CONTROL}{method}"), &[], wire::encode(&request)).await
    }

    /// A call of LLBBridge.
    pub(crate) async fn bridge(&self, method: &str, build: &str) -> Call {
        let headers = [("buildkit-controlapi-buildid", build)];
        let path = format!("{BRIDGE}{method}");
        self.send(&path, &headers, Bytes::from_static(&[0, 0, 0, 0, 0])).await
    }

    /// A call of Control with an empty message.
    pub(crate) async fn control(&self, method: &str) -> Call {
        let path = format!("{CONTROL}{method}");
        self.send(&path, &[], Bytes::from_static(&[0, 0, 0, 0, 0])).await
    }
}

/// Shakes hands with a server that is called by its address.
async fn shake(stream: TcpStream, config: Arc<ClientConfig>) -> TlsStream<TcpStream> {
    let _ = stream.set_nodelay(true);
    let address = stream.peer_addr().expect("connected").ip();
    let connector = TlsConnector::from(config);
    connector.connect(address.into(), stream).await.expect("a handshake")
}

/// A configuration that trusts the authority in `directory`.
fn trusting(
    directory: &Path,
    versions: &[&'static SupportedProtocolVersion],
) -> ConfigBuilder<ClientConfig, WantsClientCert> {
    let mut roots = RootCertStore::empty();
    let authority = read(directory, "ca.crt");
    let authority = CertificateDer::from_pem_slice(&authority).expect("a certificate");
    roots.add(authority).expect("an authority");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("versions")
        .with_root_certificates(roots)
}

fn read(directory: &Path, name: &str) -> Vec<u8> {
    std::fs::read(directory.join(name)).expect("a file")
}

/// Opens a connection to `socket` from this address of the machine.
async fn stream_from(address: &str, socket: &str) -> TcpStream {
    let own = TcpSocket::new_v4().expect("a socket");
    own.bind(format!("{address}:0").parse().expect("an address")).expect("bound");
    let stream = own.connect(socket.parse().expect("an address")).await;
    stream.expect("the proxy accepts")
}

impl Call {
    /// The body of the request, and the future response.
    pub(crate) fn into_parts(self) -> (SendStream<Bytes>, ResponseFuture) {
        (self.upload, self.response)
    }

    /// Waits for response headers.
    pub(crate) async fn answered(self) -> Result<Answered, h2::Error> {
        let response =
            tokio::time::timeout(LIMIT, self.response).await.expect("an answer in time")?;
        let (head, body) = response.into_parts();
        Ok(Answered { headers: head.headers, body, upload: self.upload })
    }

    /// Waits for the end of the call.
    pub(crate) async fn ended(self) -> Ended {
        match self.answered().await {
            Ok(answered) => answered.ended().await,
            Err(error) => Ended {
                headers: HeaderMap::new(),
                body: Bytes::new(),
                trailers: HeaderMap::new(),
                reset: error.reason(),
            },
        }
    }
}

impl Answered {
    /// Waits for the end of the answer.
    pub(crate) async fn ended(mut self) -> Ended {
        let read = async {
            let mut all = Vec::new();
            while let Some(data) = self.body.data().await {
                match data {
                    Ok(data) => {
                        let _ = self.body.flow_control().release_capacity(data.len());
                        all.extend_from_slice(&data);
                    }
                    Err(error) => return (all, Err(error)),
                }
            }
            (all, self.body.trailers().await)
        };
        let (body, trailers) = tokio::time::timeout(LIMIT, read).await.expect("an end in time");
        let reset = trailers.as_ref().err().and_then(h2::Error::reason);
        let trailers = trailers.ok().flatten().unwrap_or_default();
        Ended { headers: self.headers, body: body.into(), trailers, reset }
    }
}
