//! A child process that ends when its guard is dropped, or when the test process dies for any reason.

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    time::Duration,
};

use super::{eventually, tools::tool};

/// Runs the command in a session of its own. When standard input ends, which the death of the test process also
/// causes, the script sends TERM and, two seconds later, KILL. If the test process is gone, or is a zombie that nobody
/// has waited for, the script also removes the child's directory.
const KEEPER: &str = r#"
setsid "$@" </dev/null & pid=$!
echo "$pid" >"$KEEPER_PID"
{ cat >/dev/null; kill -TERM "$pid" 2>/dev/null
  for _ in 1 2 3 4 5 6 7 8 9 10; do kill -0 "$pid" 2>/dev/null || break; sleep 0.2; done
  kill -KILL -"$pid" 2>/dev/null
  if [ -n "$KEEPER_REMOVE" ] && ! grep -q '^State:.[^ZX]' "/proc/$KEEPER_TEST/status" 2>/dev/null; then
    awk -v d="$KEEPER_REMOVE" 'index($2, d) == 1 { print $2 }' /proc/mounts | xargs -r umount -l
    rm -rf "$KEEPER_REMOVE"
  fi
  rm -rf "$KEEPER_FILES"; } <&3 &
wait "$pid"
code=$?
echo "$code" >"$KEEPER_PID.code"
exit "$code"
"#;

/// A running program.
#[derive(Debug)]
pub(crate) struct Guarded {
    keeper: Child,
    lifeline: Option<ChildStdin>,
    pid: u32,
    log: PathBuf,
    _files: tempfile::TempDir,
}

impl Guarded {
    /// Starts `program`, whose output goes to a file.
    pub(crate) fn start(program: &Path, args: &[&str]) -> Self {
        Self::start_in(program, args, "")
    }

    /// Starts `program`. Its own `directory` is removed when the test process dies.
    pub(crate) fn start_in(program: &Path, args: &[&str], directory: &str) -> Self {
        let files = tempfile::tempdir().expect("a directory");
        let (log, pid_file) = (files.path().join("log"), files.path().join("pid"));
        let output = File::create(&log).expect("a log file");
        let mut keeper = Command::new(tool("bash"))
            .args(["-c", &format!("exec 3<&0; {KEEPER}"), "keeper"])
            .arg(program)
            .args(args)
            .env("KEEPER_PID", &pid_file)
            .env("KEEPER_FILES", files.path())
            .env("KEEPER_REMOVE", directory)
            .env("KEEPER_TEST", std::process::id().to_string())
            .stdin(Stdio::piped())
            .stdout(output.try_clone().expect("a second handle"))
            .stderr(output)
            .spawn()
            .expect("bash runs");
        let lifeline = keeper.stdin.take();
        let pid = eventually("the keeper starts its child", Duration::from_secs(10), || {
            std::fs::read_to_string(&pid_file).ok()?.trim().parse().ok()
        });
        Self { keeper, lifeline, pid, log, _files: files }
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// All that the program has printed.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends a signal, for example `TERM` or `KILL`.
    pub(crate) fn signal(&self, signal: &str) {
        let sent = Command::new(tool("kill")).args(["-s", signal, &self.pid.to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "kill -s {signal} {}", self.pid);
    }

    /// The exit status, once the program has ended.
    pub(crate) fn wait(&mut self, limit: Duration) -> ExitStatus {
        eventually("the process ends", limit, || self.keeper.try_wait().expect("a child"))
    }

    /// Whether the program runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.keeper.try_wait().expect("a child").is_none()
    }

    /// The processor time that the program has used.
    pub(crate) fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid));
        let stat = stat.expect("the process runs");
        // The name may contain anything; of the fields after it, 14 and 15 are user and system time.
        let fields = stat.rsplit(')').next().expect("a name").split_whitespace();
        let ticks: u64 = fields.skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
        // A tick is a hundredth of a second on Linux.
        Duration::from_millis(ticks * 10)
    }

    /// The number of files and sockets that the program has open.
    pub(crate) fn descriptors(&self) -> usize {
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.pid));
        open.expect("the process runs").count()
    }

    /// A figure of `/proc/PID/status` in KiB, for example `VmRSS` or `VmHWM`.
    pub(crate) fn memory_kib(&self, figure: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))
            .expect("the process runs");
        let line = status.lines().find(|line| line.starts_with(figure)).expect("a known figure");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if let Some(mut lifeline) = self.lifeline.take() {
            let _ = lifeline.flush();
        }
        let _ = self.keeper.wait();
        if std::thread::panicking() {
            let log = self.log();
            let tail = log.len().saturating_sub(6000);
            let tail = (tail..log.len()).find(|at| log.is_char_boundary(*at)).unwrap_or(0);
            eprintln!("--- log of process {} ---\n{}", self.pid, &log[tail..]);
        }
    }
}
