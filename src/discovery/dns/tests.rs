use std::{collections::HashMap, sync::Arc};

use hickory_resolver::proto::{
    op::{Message, OpCode, ResponseCode},
    rr::{
        Name as DnsName, Record, RecordType,
        rdata::{A, SRV},
    },
};
use parking_lot::Mutex;
use tokio::{net::UdpSocket, task::JoinHandle};

use super::*;
use crate::{discovery::Discovery, fleet::Fleet, metrics::Metrics};

type Zone = Arc<Mutex<HashMap<(String, RecordType), Vec<RData>>>>;

/// A DNS server on loopback, and the discovery that asks it.
struct Server {
    zone: Zone,
    fleet: Arc<Fleet>,
    discovery: Arc<Discovery>,
    _tasks: [JoinHandle<()>; 2],
}

impl Server {
    #[allow(clippy::disallowed_methods, reason = "the tasks end with the test's runtime")]
    async fn start(name: &str, zone: &[(&str, RecordType, Vec<RData>)]) -> Self {
        let entries =
            zone.iter().map(|(name, kind, data)| ((format!("{name}."), *kind), data.clone()));
        let zone: Zone = Arc::new(Mutex::new(entries.collect()));
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let address = socket.local_addr().expect("listening");
        let serve = tokio::spawn(serve(socket, Arc::clone(&zone)));
        let metrics = Arc::new(Metrics::default());
        let fleet = Arc::new(Fleet::new(Arc::clone(&metrics)));
        let discovery = Discovery::new(Arc::clone(&fleet), metrics, None);
        let source = discovery.source(&name);
        let resolver = resolver(Some(address)).expect("a resolver");
        let run = run(resolver, name.parse().expect("valid"), source, CancellationToken::new());
        Self { zone, fleet, discovery, _tasks: [serve, tokio::spawn(run)] }
    }

    fn fleet(&self) -> Vec<String> {
        let backends = self.fleet.backends();
        backends.iter().map(|b| format!("{}={}", b.name(), b.address().authority())).collect()
    }

    async fn until(&self, done: impl Fn(&Self) -> bool) {
        let look = async {
            while !done(self) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), look).await.expect("in time");
    }
}

async fn serve(socket: UdpSocket, zone: Zone) {
    let mut buffer = [0; 2048];
    while let Ok((len, peer)) = socket.recv_from(&mut buffer).await {
        let Ok(request) = Message::from_vec(&buffer[..len]) else { continue };
        let query = request.queries[0].clone();
        let mut answer = Message::response(request.metadata.id, OpCode::Query);
        answer.queries.push(query.clone());
        let key = (query.name().to_lowercase().to_string(), query.query_type());
        match zone.lock().get(&key) {
            Some(data) => {
                for data in data {
                    answer.add_answer(Record::from_rdata(query.name().clone(), 1, data.clone()));
                }
            }
            None => answer.metadata.response_code = ResponseCode::NXDomain,
        }
        let _ = socket.send_to(&answer.to_vec().expect("encodes"), peer).await;
    }
}

fn a(last: u8) -> RData {
    RData::A(A::new(10, 0, 0, last))
}

#[test]
fn names_are_read_and_written_alike() {
    for text in ["buildkitd.ci.svc:1234", "_grpc._tcp.buildkitd.ci.svc"] {
        assert_eq!(text.parse::<Name>().expect(text).to_string(), text);
    }
    for text in ["", "a", "a:", "a:0", "a:x", "_grpc._tcp.a:1", ":1", "a b:1", ".a:1"] {
        assert!(text.parse::<Name>().is_err(), "{text}");
    }
}

#[tokio::test]
async fn addresses_are_followed_and_stay_when_the_name_fails() {
    let zone = [("all.test", RecordType::A, vec![a(2), a(1)])];
    let server = Server::start("all.test:1234", &zone).await;
    server
        .until(|server| server.fleet() == ["10.0.0.1=10.0.0.1:1234", "10.0.0.2=10.0.0.2:1234"])
        .await;
    server.zone.lock().insert(("all.test.".into(), RecordType::A), vec![a(2), a(3)]);
    let changed = ["10.0.0.2=10.0.0.2:1234", "10.0.0.3=10.0.0.3:1234"];
    server.until(|server| server.fleet() == changed).await;
    server.zone.lock().clear();
    server.until(|server| server.discovery.statuses()[0].error.is_some()).await;
    let error = server.discovery.statuses()[0].error.clone().expect("error");
    assert!(error.stale && error.text.contains("all.test:1234"), "{}", error.text);
    assert_eq!(server.fleet(), changed);
}

#[tokio::test]
async fn services_give_names_and_ports() {
    let service = |target: &str, port| {
        let target = DnsName::from_ascii(format!("{target}.")).expect("a name");
        RData::SRV(SRV::new(0, 0, port, target))
    };
    let records =
        vec![service("b-0.b.test", 1), service("b-1.b.test", 2), service("b-2.b.test", 3)];
    let zone = [
        ("_grpc._tcp.b.test", RecordType::SRV, records),
        ("b-0.b.test", RecordType::A, vec![a(1)]),
        ("b-1.b.test", RecordType::A, vec![a(2)]),
    ];
    let server = Server::start("_grpc._tcp.b.test", &zone).await;
    server.until(|server| server.fleet() == ["b-0=10.0.0.1:1", "b-1=10.0.0.2:2"]).await;
}
