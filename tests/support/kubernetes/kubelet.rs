//! A replacement for scheduler and kubelet: every pod gets a real buildkitd in a network of its own.

use std::{
    collections::HashMap,
    io::BufReader,
    process::{Child, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, Sender, TryRecvError},
    },
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{
    Server,
    drain::{DrainContainer, Volumes},
    pod::PodDaemon,
};
use crate::support::eventually;

/// The name of the only node. No machine is behind it.
const NODE: &str = "node-a";

/// The thread that runs pods until the value is dropped.
#[derive(Debug)]
pub(crate) struct Kubelet {
    stop: Arc<AtomicBool>,
    watch: Arc<Mutex<Option<Child>>>,
    thread: Option<JoinHandle<()>>,
}

impl Kubelet {
    /// Starts the thread.
    pub(crate) fn start(server: Server) -> Self {
        PodDaemon::install();
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}});
        server.apply(&[node]);
        let (stop, watch) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(None)));
        let mut pods = Pods { server, stop: Arc::clone(&stop), running: HashMap::new() };
        let current = Arc::clone(&watch);
        let thread = std::thread::spawn(move || {
            while !pods.stop.load(Ordering::Acquire) {
                pods.follow(&current);
                std::thread::sleep(Duration::from_millis(200));
            }
            pods.end();
        });
        Self { stop, watch, thread: Some(thread) }
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(watch) = self.watch.lock().as_mut() {
            let _ = watch.kill();
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The running pods by uid: the channel that tells each pod to end, and its thread.
struct Pods {
    server: Server,
    stop: Arc<AtomicBool>,
    running: HashMap<String, (Option<Sender<Duration>>, JoinHandle<()>)>,
}

impl Pods {
    /// Follows the pods until the API server ends the watch. At first all pods arrive as new ones.
    fn follow(&mut self, current: &Mutex<Option<Child>>) {
        let args = ["get", "pods", "-A", "-o", "json", "--watch", "--output-watch-events"];
        let mut command = self.server.command(&args);
        let watch = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut watch = watch.expect("kubectl runs");
        let stdout = BufReader::new(watch.stdout.take().expect("a pipe"));
        *current.lock() = Some(watch);
        for event in serde_json::Deserializer::from_reader(stdout).into_iter::<Value>() {
            let Ok(event) = event else { break };
            if self.stop.load(Ordering::Acquire) {
                break;
            }
            self.apply(&event["type"], &event["object"]);
        }
        if let Some(mut watch) = current.lock().take() {
            let _ = watch.kill();
            let _ = watch.wait();
        }
    }

    fn apply(&mut self, event: &Value, pod: &Value) {
        let uid = pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let deleted = !pod["metadata"]["deletionTimestamp"].is_null();
        match self.running.get_mut(&uid) {
            None if event == "ADDED" && !deleted && is_daemon(pod) => {
                let (gone, told) = mpsc::channel();
                let (server, pod) = (self.server.clone(), pod.clone());
                let thread = std::thread::spawn(move || live(&server, &pod, &told));
                self.running.insert(uid, (Some(gone), thread));
            }
            Some((gone, _thread)) if event == "DELETED" => *gone = None,
            Some((gone, _thread)) if deleted => {
                let grace = pod["metadata"]["deletionGracePeriodSeconds"].as_u64().unwrap_or(30);
                if let Some(gone) = gone.take() {
                    let _ = gone.send(Duration::from_secs(grace));
                }
            }
            _ => {}
        }
    }

    fn end(&mut self) {
        for (_uid, (gone, thread)) in self.running.drain() {
            drop(gone);
            let _ = thread.join();
        }
    }
}

/// Whether this is a new pod with a daemon. Proxies run elsewhere.
fn is_daemon(pod: &Value) -> bool {
    pod["spec"]["nodeName"].is_null() && pod["spec"]["containers"][0]["name"] == "buildkitd"
}

/// The life of one pod. If the channel for its deletion closes, the pod ends at once.
fn live(server: &Server, pod: &Value, told: &Receiver<Duration>) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (name, namespace) = (text(&pod["metadata"]["name"]), text(&pod["metadata"]["namespace"]));
    let binding = json!({
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": name, "namespace": namespace},
        "target": {"apiVersion": "v1", "kind": "Node", "name": NODE},
    });
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/binding");
    server.send(&["create", "--raw", &path, "-f", "-"], &binding);
    let volumes = Volumes::of(server, pod);
    let mut daemon = PodDaemon::start_with(&name, &volumes.certificates(pod));
    let drain = DrainContainer::start(pod, &daemon, volumes);
    let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"];
    let status = json!({"status": {
        "phase": "Running",
        "podIP": daemon.ip(),
        "podIPs": [{"ip": daemon.ip()}],
        "conditions": conditions.map(|name| json!({"type": name, "status": "True"})),
    }});
    let (scope, status) = (format!("--namespace={namespace}"), status.to_string());
    let patch = ["patch", "pod", &name, &scope, "--subresource=status", "--type=merge", "-p"];
    // The API server may be away for a while, and the pod may be deleted already.
    let grace =
        eventually("the pod is ready", Duration::from_secs(120), || match told.try_recv() {
            Ok(grace) => Some(Some(grace)),
            Err(TryRecvError::Disconnected) => Some(None),
            Err(TryRecvError::Empty) => {
                let patched = server.run(&[&patch[..], &[&status]].concat()).status.success();
                patched.then(|| told.recv().ok())
            }
        });
    let Some(grace) = grace else { return };
    let hook = &pod["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"];
    let mut hook: Vec<_> = hook.as_array().into_iter().flatten().map(text).collect();
    if let Some(drain) = &drain {
        hook = drain.locate(pod, &hook);
        drain.terminate();
    }
    daemon.stop(&hook, grace);
    drop(drain);
    drop(daemon);
    let delete = ["delete", "pod", &name, &scope, "--grace-period=0", "--force", "--wait=false"];
    eventually("the pod is deleted", Duration::from_secs(60), || {
        let output = server.run(&delete);
        let gone = String::from_utf8_lossy(&output.stderr).contains("NotFound");
        (output.status.success() || gone).then_some(())
    });
}
