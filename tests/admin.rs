//! Who may change what on the admin port, and how a client shows that it may.

mod support;

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command, time::Duration};

use support::{
    client::{run, text},
    eventually, free_port,
    proxy::{Builder, Proxy},
    tools::tool,
};

const OLD: &str = "0f8a3e1c9b7d4652a1c0e9f8b7d6a543";
const NEW: &str = "77aa3e1c9b7d4652a1c0e9f8b7d6a500";

/// A proxy for a daemon that does not run: nothing asks the daemon.
fn proxy(args: &[&str]) -> Proxy {
    Builder::default().backend(&format!("b=tcp://127.0.0.1:{}", free_port())).args(args).start()
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

#[test]
fn reading_changes_nothing_whoever_reads() {
    let proxy = proxy(&[]);
    for path in ["/backends/b/drain", "/backends/b/cordon"] {
        assert_eq!(proxy.admin("GET", path).0, 405, "{path}");
        assert_eq!(proxy.control("GET", path).0, 405, "{path}");
    }
    assert_eq!(proxy.control("GET", "/backends/b/builds").0, 200);
    assert_eq!(proxy.metric("buildkit_lb_backend_state", &["\"cordoned\""]), 0.0);
}

#[test]
fn the_admin_port_takes_changes_from_nobody_unless_it_is_told_of_tokens() {
    let proxy = proxy(&[]);
    for (method, path) in [
        ("POST", "/backends/b/drain"),
        ("POST", "/backends/b/cordon"),
        ("DELETE", "/backends/b/cordon"),
    ] {
        let (code, told) = proxy.admin_with(method, path, &bearer(OLD));
        assert_eq!(code, 403, "{method} {path}: {told}");
        assert!(told.contains("--control-listen") && told.contains("--admin-token-file"), "{told}");
    }
    let refused = proxy.metric("buildkit_lb_admin_requests_refused_total", &["disabled"]);
    assert_eq!(refused, 3.0);
    assert_eq!(proxy.control("POST", "/backends/b/cordon").0, 200);
    let mode = fs::metadata(proxy.control_socket()).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "nobody else on the machine may");
}

#[test]
fn a_token_is_taken_while_it_is_in_the_file() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), OLD).expect("written");
    let proxy = proxy(&["--admin-token-file", file.path().to_str().expect("UTF-8")]);
    let cordon = |headers: &str| proxy.admin_with("POST", "/backends/b/cordon", headers);
    let (code, told) = cordon("");
    assert!(code == 401 && told.contains("Authorization: Bearer"), "{told}");
    let (code, told) = cordon(&bearer(NEW));
    assert!(code == 401 && told.contains("--admin-token-file"), "{told}");
    assert_eq!(cordon(&bearer(OLD)).0, 200);
    let becomes = |token: &str, code: u16| {
        eventually("the file is read again", Duration::from_secs(20), || {
            (cordon(&bearer(token)).0 == code).then_some(())
        });
    };
    fs::write(file.path(), format!("{OLD}\n{NEW}\n")).expect("written");
    becomes(NEW, 200);
    assert_eq!(cordon(&bearer(OLD)).0, 200, "for as long as both are there");
    fs::write(file.path(), NEW).expect("written");
    becomes(OLD, 401);
    // After a token file becomes invalid, the last tokens stay in force, and one record says so.
    fs::write(file.path(), "").expect("written");
    eventually("the loss is told", Duration::from_secs(20), || {
        assert_eq!(cordon(&bearer(NEW)).0, 200);
        let told = proxy.records("cannot read tokens, the last ones stay valid");
        (!told.is_empty()).then_some(())
    });
    assert!(proxy.metric("buildkit_lb_admin_requests_refused_total", &["wrong_token"]) >= 2.0);
    assert!(proxy.metric("buildkit_lb_admin_requests_refused_total", &["no_token"]) >= 1.0);
    for secret in [OLD, NEW] {
        assert!(!proxy.process.log().contains(secret), "a token in the log");
    }
}

#[test]
fn a_web_page_changes_nothing_in_whatever_browser_it_is() {
    let proxy = proxy(&[]);
    let foreign = "Origin: https://elsewhere.example\r\n";
    for (method, path) in [
        ("POST", "/backends/b/drain"),
        ("POST", "/backends/b/cordon"),
        ("DELETE", "/backends/b/cordon"),
    ] {
        let (code, told) = proxy.control_with(method, path, foreign);
        assert!(code == 403 && told.contains("web page"), "{method} {path}: {code} {told}");
    }
    assert_eq!(proxy.metric("buildkit_lb_backend_state", &["\"cordoned\""]), 0.0);
    assert_eq!(proxy.metric("buildkit_lb_admin_requests_refused_total", &["web_page"]), 3.0);
    assert_eq!(proxy.control("POST", "/backends/b/cordon").0, 200);
}

#[test]
fn a_request_above_the_bound_is_refused() {
    let proxy = proxy(&[]);
    let long = format!("x: {}\r\n", "a".repeat(20 << 10));
    assert_eq!(proxy.admin_with("GET", "/livez", &long).0, 431);
    assert_eq!(proxy.admin("GET", "/livez").0, 200);
}

#[test]
fn what_lets_everybody_change_things_is_a_configuration_error() {
    let directory = tempfile::tempdir().expect("a directory");
    let short = directory.path().join("short");
    fs::write(&short, "secret\n").expect("written");
    let short = short.to_str().expect("UTF-8");
    for (args, told) in [
        (["--admin-token-file", short], "admin-token-file: line 1 of"),
        (
            ["--admin-token-file", "/dev/null"],
            "admin-token-file: `/dev/null` is not a regular file",
        ),
        (["--admin-token-file", "/no/such/file"], "admin-token-file: cannot read `/no/such/file`"),
        (
            ["--control-listen", "tcp://0.0.0.0:9091"],
            "control-listen: `tcp://0.0.0.0:9091` is neither",
        ),
        (["--control-listen", "localhost:9091"], "control-listen: `localhost:9091` is neither"),
    ] {
        let mut check = Command::new(env!("CARGO_BIN_EXE_buildkit-lb"));
        let output = run(check.args(["check-config", "--backend", "tcp://b:1"]).args(args));
        assert_eq!(output.status.code(), Some(64), "{args:?}");
        assert!(text(&output).contains(told), "{}", text(&output));
    }
}

#[test]
fn a_control_listener_on_loopback_is_for_the_whole_machine() {
    let port = free_port();
    let address = format!("tcp://127.0.0.1:{port}");
    let proxy = Builder::default().backend("b=tcp://127.0.0.1:1").control(&address).start();
    let url = format!("http://127.0.0.1:{port}/backends/b/cordon");
    let output = run(Command::new(tool("curl")).args([
        "--silent",
        "--show-error",
        "--request",
        "POST",
        &url,
    ]));
    assert!(text(&output).contains("b is cordoned"), "{}", text(&output));
    assert_eq!(proxy.admin("POST", "/backends/b/cordon").0, 403);
}
