//! The name in a daemon's certificate must be the name by which the daemon was found.

use std::{net::UdpSocket, time::Duration};

use crate::{
    authorities::{Authorities, builds},
    support::{
        certificates::Request,
        eventually,
        proxy::{Builder, Proxy},
    },
};

/// A DNS server that answers every question for an address with 127.0.0.1, and all others with nothing. Returns its
/// address.
fn name_server() -> String {
    const ADDRESS: [u8; 2] = [0, 1];
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let address = socket.local_addr().expect("bound").to_string();
    std::thread::spawn(move || {
        let mut message = [0; 512];
        while let Ok((len, peer)) = socket.recv_from(&mut message) {
            // A header of twelve bytes, labels up to an empty one, then type and class (RFC 1035, section 4.1).
            let question = &message[12..len];
            let Some(end) = question.iter().position(|byte| *byte == 0) else { continue };
            let question = &question[..end + 5];
            let asked = question[end + 1..end + 3] == ADDRESS;
            let mut answer = message[..2].to_vec();
            // A response with recursion, one question, and one answer or none.
            answer.extend([0x81, 0x80, 0, 1, 0, u8::from(asked), 0, 0, 0, 0]);
            answer.extend(question);
            if asked {
                // The name of the question, an address record, one minute to live.
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
            }
            let _ = socket.send_to(&answer, peer);
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_dns_finds_must_have_the_name_that_was_asked_for() {
    let authorities = Authorities::new();
    let request = Request { names: &["127.0.0.1", "daemons.test"], ..Request::SERVER };
    let daemon = authorities.daemon("d0", &request);
    let port = daemon.addr().rsplit(':').next().expect("a port").to_owned();
    let [own, to_daemons] = [
        authorities.clients.directory("proxy", &Request::SERVER),
        authorities.daemons.directory("proxy", &Request::CLIENT),
    ]
    .map(|directory| directory.to_str().expect("UTF-8").to_owned());
    let dns = name_server();
    let start = |name: &str, more: &[&str]| -> Proxy {
        let found = format!("dns://{name}:{port}");
        Builder::default()
            .args(&["--discover", &found, "--dns-server", &dns])
            .args(&["--tls-dir", &own, "--backend-tls-dir", &to_daemons])
            .args(more)
            .start()
    };
    let client = authorities.clients.directory("client", &Request::CLIENT);
    for (name, more) in
        [("daemons.test", &[][..]), ("other.test", &["--backend-tls-server-name", "daemons.test"])]
    {
        let proxy = start(name, more);
        proxy.wait_ready(1, Duration::from_secs(20));
        builds(&proxy, &client, name);
    }
    let proxy = start("other.test", &[]);
    let told = eventually("the daemon is ejected", Duration::from_secs(20), || {
        proxy.records("backend ejected").into_iter().next()
    });
    let error = told["error"].as_str().expect("a text");
    assert!(told["fault"] == "tls" && error.contains("not for `other.test` but for"), "{told}");
}
