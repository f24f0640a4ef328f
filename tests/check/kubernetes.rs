//! The rights of the proxy's account, and the sources that need them.

use buildkit_lb::check::Level;

use crate::{
    check, command, expect,
    support::kubernetes::{Cluster, unreachable_kubeconfig},
};

#[test]
fn a_missing_right_and_a_missing_api_are_told_with_what_to_do() {
    let cluster = Cluster::bare();
    cluster.namespace("check");
    let account = cluster.account("check", &[]);
    let with = |args: &[&str], kubeconfig: &std::path::Path| {
        let service = ["--discover", "kubernetes://check/buildkitd", "--listen", "127.0.0.1:0"];
        check(command(&[&service[..], args].concat()).env("KUBECONFIG", kubeconfig))
    };
    let (code, findings) = with(&["--pod-deletion-cost"], &account);
    assert_eq!(code, Some(1), "{findings:#?}");
    expect(&findings, Level::Ok, "Kubernetes API", "its clock agrees");
    for verb in ["get", "list", "watch"] {
        let right = format!("right to {verb} endpointslices in namespace check");
        expect(&findings, Level::Ok, &right, "granted");
    }
    expect(&findings, Level::Error, "right to patch pods in namespace check", "not granted");
    expect(
        &findings,
        Level::Error,
        "source kubernetes://check/buildkitd",
        "is there such a service",
    );
    let nowhere = unreachable_kubeconfig();
    let (code, findings) = with(&[], nowhere.path());
    assert_eq!(code, Some(1), "{findings:#?}");
    expect(&findings, Level::Error, "Kubernetes API", "");
}
