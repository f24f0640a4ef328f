//! `top` on a terminal and on a pipe.

use std::{
    fs::{self, File},
    io::Write as _,
    process::{Command, Stdio},
};

use crate::{
    Killed, LongBuild, WAIT,
    support::{
        buildkitd::Buildkitd, child::Guarded, eventually, free_port, proxy::Proxy, tools::tool,
    },
};

#[tokio::test(flavor = "multi_thread")]
async fn top_shows_what_happens_and_leaves_the_terminal_as_it_was() {
    let fleet = Buildkitd::fleet(1);
    let admin = format!("127.0.0.1:{}", free_port());
    let start = || Proxy::in_front_of(&fleet).admin(&admin).start();
    let proxy = start();
    let url = format!("http://{admin}");
    let binary = env!("CARGO_BIN_EXE_buildkit-lb");
    let args = ["top", "--interval", "100ms", "--admin", &url];
    let piped = Guarded::start(env!("CARGO_BIN_EXE_buildkit-lb").as_ref(), &args);
    let written = tempfile::NamedTempFile::new().expect("a file");
    let mut script = Command::new(tool("script"));
    script.args(["--quiet", "--return", "--command", &format!("{binary} {}", args.join(" "))]);
    let output = File::create(written.path()).expect("a file");
    let script = script.arg("/dev/null").env("TERM", "xterm").env_remove("NO_COLOR");
    let script = script.stdin(Stdio::piped()).stdout(output).stderr(Stdio::null()).spawn();
    let mut terminal = Killed(script.expect("a terminal"));
    let shown = || fs::read_to_string(written.path()).unwrap_or_default();

    let build = LongBuild::through(&proxy, "team/app");
    eventually("a build is shown", WAIT, || {
        [piped.log(), shown()].iter().all(|text| text.contains("team/app")).then_some(())
    });
    assert!(shown().starts_with("\x1b[?1049h\x1b[?25l") && shown().contains("\x1b[32mready"));
    assert!(!piped.log().contains('\x1b'), "{}", piped.log());
    proxy.process.signal("KILL");
    drop((build, proxy));
    eventually("it says that the proxy is gone", WAIT, || {
        [piped.log(), shown()]
            .iter()
            .all(|text| text.contains("the proxy does not answer"))
            .then_some(())
    });
    let told = piped.log();
    let last = told.rsplit("\n\n\n").next().expect("a frame").to_owned();
    assert!(last.contains("d0"), "the last state stays: {last}");
    let _proxy = start();
    eventually("it goes on", WAIT, || {
        let log = piped.log();
        let after = log.rsplit("the proxy does not answer").next()?;
        after.contains("0 builds run").then_some(())
    });

    let mut keys = terminal.0.stdin.take().expect("a pipe");
    keys.write_all(b"\x03").expect("Ctrl-C is typed");
    let status = eventually("it ends", WAIT, || terminal.0.try_wait().expect("a child"));
    assert_eq!(status.code(), Some(0), "{}", shown());
    assert!(shown().trim_end().ends_with("\x1b[?25h\x1b[?1049l"), "{:?}", shown());
    let mut piped = piped;
    piped.signal("INT");
    assert_eq!(piped.wait(WAIT).code(), Some(0), "{}", piped.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn top_ends_when_nobody_reads_it() {
    let proxy = crate::support::proxy::Builder::default().backend("b=tcp://127.0.0.1:1").start();
    let mut top = crate::command(&proxy, &["top", "--interval", "100ms"]);
    let mut child = Killed(top.stdout(Stdio::piped()).spawn().expect("runs"));
    drop(child.0.stdout.take());
    let status = eventually("it ends", WAIT, || child.0.try_wait().expect("a child"));
    assert_eq!(status.code(), Some(0));
}
