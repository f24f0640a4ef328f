//! Ports, certificates, names and daemons.

use std::{net::TcpListener, path::Path};

use buildkit_lb::check::Level;

use crate::{
    check, command, expect,
    support::{
        buildkitd::Buildkitd,
        certificates::{Authority, Request, Validity},
        client::{run, text},
        free_port,
        proxy::Proxy,
    },
};

/// Where no test listens.
const FREE: [&str; 2] = ["--listen", "127.0.0.1:0"];

#[tokio::test(flavor = "multi_thread")]
async fn a_set_up_without_faults_is_well_and_each_fault_is_told_with_what_to_do() {
    let fleet = Buildkitd::fleet(2);
    let backends: Vec<_> = fleet.iter().map(Buildkitd::backend).collect();
    let both = ["--backend", &backends[0], "--backend", &backends[1]];
    let output = run(&mut command(&[&both[..], &FREE].concat()));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let table = text(&output);
    assert!(table.starts_with("LEVEL  SUBJECT") && !table.contains('\x1b'), "{table}");
    assert!(table.lines().skip(1).all(|line| line.starts_with("ok ")), "{table}");
    assert!(table.contains("daemon d1") && table.contains("builds for linux/"), "{table}");

    let old = Buildkitd::start_old("old");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("bound").to_string();
    let expired = Authority::new("of clients");
    let expired =
        expired.directory("proxy", &Request { validity: Validity::Expired, ..Request::SERVER });
    let dead = format!("dead=tcp://127.0.0.1:{}", free_port());
    let dns = format!("127.0.0.1:{}", free_port());
    let (code, findings) = check(&mut command(&[
        "--backend",
        &backends[0],
        "--backend",
        &old.backend(),
        "--backend",
        &dead,
        "--backend",
        "nowhere=tcp://no-such-host.invalid:1",
        "--discover",
        "dns://no-such-host.invalid:1",
        "--dns-server",
        &dns,
        "--listen",
        &taken,
        "--tls-dir",
        path(&expired),
    ]));
    assert_eq!(code, Some(1), "{findings:#?}");
    expect(&findings, Level::Ok, "daemon d0", "builds for linux/");
    expect(&findings, Level::Ok, "daemon old", "v0.16");
    expect(&findings, Level::Warning, "pool default", "different versions: v0.16");
    expect(&findings, Level::Error, "daemon dead", "refused");
    expect(&findings, Level::Error, "daemon nowhere", "lookup");
    expect(&findings, Level::Error, "source dns://no-such-host.invalid:1", "");
    expect(&findings, Level::Error, &format!("port tcp://{taken}"), "no proxy answers");
    expect(&findings, Level::Error, "tls.crt", "has expired");
}

fn path(directory: &Path) -> &str {
    directory.to_str().expect("UTF-8")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_proxy_and_a_wrong_authority_are_known() {
    let (authority, stranger) = (Authority::new("of daemons"), Authority::new("a stranger"));
    let own = authority.directory("daemon", &Request::SERVER);
    let client = authority.directory("proxy", &Request::CLIENT);
    let foreign = stranger.directory("proxy", &Request::CLIENT);
    let daemon = Buildkitd::start_tls("secured", &own, &client);
    let tls = ["--backend-tls-dir", path(&client)];
    let proxy = Proxy::in_front_of([&daemon]).args(&tls).start();
    let (listen, admin) = (proxy.addr(), proxy.admin_socket().to_owned());
    let ports = ["--listen", &listen, "--admin-listen", &admin];
    let backend = daemon.backend();
    let check_with = |directory: &Path| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_buildkit-lb"));
        command.args(["check", "--backend", &backend, "--backend-tls-dir", path(directory)]);
        check(command.args(ports))
    };
    let (code, findings) = check_with(&client);
    assert_eq!(code, Some(0), "{findings:#?}");
    for port in [listen.as_str(), admin.as_str()] {
        expect(&findings, Level::Ok, port, "a proxy runs");
    }
    let (code, findings) = check_with(&foreign);
    assert_eq!(code, Some(1), "{findings:#?}");
    expect(&findings, Level::Error, "daemon secured", "signed by none of the authorities");
}
