//! What a command says when it gets no good answer: the URL, the cause, and what to do.

use std::{fs, process::Command};

use crate::support::{
    certificates::{Authority, Request},
    client::{run, text},
    free_port,
    proxy::{Builder, Proxy},
};

const TOKEN: &str = "5ebe2294ecd0e0f08eab7690d2a6ee69";
const WRONG: &str = "00000000000000000000000000000000";

/// Runs a command that must fail, and returns its one line of standard error.
fn refused(args: &[&str]) -> String {
    let output = run(Command::new(env!("CARGO_BIN_EXE_buildkit-lb")).args(args));
    assert_eq!(output.status.code(), Some(1), "{args:?}: {}", text(&output));
    assert!(output.stdout.is_empty(), "{}", text(&output));
    let told = text(&output);
    assert_eq!(told.lines().count(), 1, "{told}");
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_names_the_url_the_cause_and_the_flag() {
    let authority = Authority::new("of the admin port");
    let stranger = Authority::new("a stranger");
    let own = authority.directory("proxy", &Request::SERVER);
    let directory = |of: &Authority, name| {
        let made = of.directory(name, &Request { name, ..Request::CLIENT });
        made.to_str().expect("UTF-8").to_owned()
    };
    let (operator, team) = (directory(&authority, "operator"), directory(&authority, "team"));
    let foreign = directory(&stranger, "operator");
    let files = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: &str| {
        let path = files.path().join(name);
        fs::write(&path, text).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    };
    let (token, wrong) = (file("token", TOKEN), file("wrong", WRONG));
    let start = |args: &[&str]| {
        Builder::default().backend(&format!("b=tcp://127.0.0.1:{}", free_port())).args(args).start()
    };
    let plain = start(&["--admin-token-file", &token]);
    let closed = start(&[]);
    let secured = ["--admin-tls-dir", own.to_str().expect("UTF-8"), "--admin-client", "operator"];
    let secured = start(&secured);
    let url = |proxy: &Proxy| format!("http://{}", proxy.admin_socket());
    let (plain, closed) = (url(&plain), url(&closed));
    let (https, http) = (format!("https://{}", secured.admin_socket()), url(&secured));
    let nobody = format!("http://127.0.0.1:{}", free_port());
    for (args, told) in [
        (vec!["cordon", "b", "--admin", &plain], "401 Unauthorized: this request needs a token"),
        (
            vec!["cordon", "b", "--admin", &plain, "--token-file", &wrong],
            "the token is not in the file of --admin-token-file",
        ),
        (vec!["cordon", "b", "--admin", &plain, "--token-file", "/none"], "cannot read `/none`"),
        (vec!["cordon", "b", "--admin", &closed], "--admin unix:///PATH"),
        (vec!["status", "--admin", &nobody], "is the proxy running, and is --admin its"),
        (vec!["status", "--admin", &http], "ask https:// instead"),
        (vec!["status", "--admin", &https], "--proxy-tls-dir DIR"),
        (vec!["status", "--admin", &http, "--proxy-tls-dir", &operator], "only for https:// URLs"),
        (
            vec!["status", "--admin", &https, "--proxy-tls-dir", &foreign],
            "check the CA certificates",
        ),
        (
            vec!["cordon", "b", "--admin", &https, "--proxy-tls-dir", &team],
            "not listed by --admin-client",
        ),
        (vec!["status", "--admin", "unix:///no/such/socket"], "is the proxy running"),
        (vec!["status", "--admin", "http://no-such-host.invalid:1"], "look up the host of http"),
    ] {
        let line = refused(&args);
        let url = args.iter().find(|arg| arg.contains("://")).expect("a URL");
        assert!(line.contains(told) && line.contains(url), "{args:?}: {line}");
        assert!(!line.contains(WRONG), "a token is told: {line}");
    }
    let operator = ["cordon", "b", "--admin", &https, "--proxy-tls-dir", &operator];
    let output = run(Command::new(env!("CARGO_BIN_EXE_buildkit-lb")).args(operator));
    assert!(output.status.success(), "{}", text(&output));
    let output =
        run(Command::new(env!("CARGO_BIN_EXE_buildkit-lb")).args(["status", "--admin", "x"]));
    assert_eq!(output.status.code(), Some(64), "{}", text(&output));
}
