//! A build of somebody else, with a real client and a real daemon.

use std::process::Output;

use crate::support::{
    client::{Context, buildctl_build, run, text},
    proxy::Proxy,
};

/// Builds something through `proxy` while other things run; the build must succeed.
pub(crate) async fn builds(proxy: &Proxy) {
    let addr = proxy.addr();
    let build = move || -> Output {
        let context = Context::busybox("RUN echo bystander > /built");
        run(buildctl_build(&addr, &context).arg("--no-cache"))
    };
    let output = tokio::task::spawn_blocking(build).await.expect("no panic");
    assert!(output.status.success(), "a bystander's build: {}", text(&output));
}
