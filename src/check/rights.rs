//! Whether the Kubernetes API lets the proxy do what it will ask for, and whether the API server's clock agrees.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use http::{Request, header::DATE};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::{Api, Client, api::PostParams, client::Body};
use tokio::time::timeout;

use super::Findings;
use crate::{
    config::{Pods, Pool},
    discovery::Target,
    error::chain,
    kubernetes::Access,
};

/// How long the API server may take for one answer.
const LIMIT: Duration = Duration::from_secs(5);

/// How far the clocks may be apart. Certificates and tokens are issued some seconds before they are used.
const SKEW: Duration = Duration::from_secs(30);

const API: &str = "Kubernetes API";

/// One permission: namespace, API group, resource and verb.
type Permission = (String, &'static str, &'static str, &'static str);

/// Checks the rights that the sources of `pools` and the settings of pods need.
pub(super) async fn check(
    pools: &[Pool],
    pods: Pods,
    kubernetes: &Access,
    findings: &mut Findings,
) {
    let permissions = permissions(pools, pods);
    if permissions.is_empty() {
        return;
    }
    let client = match kubernetes.client().await {
        Ok(client) => client,
        Err(error) => {
            let advice =
                "run the check in a pod with the proxy's service account, or set KUBECONFIG";
            return findings.error(API, chain(&error), advice);
        }
    };
    match timeout(LIMIT, clock_skew(&client)).await {
        Ok(Ok(Some(skew))) if skew > SKEW => {
            let text = format!("its clock and that of this machine are {skew:?} apart");
            findings.error(API, text, "set the clocks: certificates and tokens depend on them");
        }
        Ok(Ok(_agrees)) => findings.ok(API, "answers, and its clock agrees"),
        Ok(Err(error)) => {
            let advice =
                "check the address, the CA and the token in the kubeconfig or the service account";
            return findings.error(API, chain(&error), advice);
        }
        Err(_elapsed) => {
            let text = format!("no answer within {LIMIT:?}");
            return findings.error(
                API,
                text,
                "check the network between the proxy and the API server",
            );
        }
    }
    for permission in permissions {
        let (namespace, group, resource, verb) = &permission;
        let subject = format!("right to {verb} {resource} in namespace {namespace}");
        let advice = format!(
            "grant the verb {verb} on {resource} (API group `{group}`) to the proxy's account"
        );
        match timeout(LIMIT, is_allowed(&client, &permission)).await {
            Ok(Ok(true)) => findings.ok(&subject, "granted"),
            Ok(Ok(false)) => findings.error(&subject, "not granted", &advice),
            Ok(Err(error)) => findings.error(&subject, chain(&error), &advice),
            Err(_elapsed) => {
                findings.error(&subject, format!("no answer within {LIMIT:?}"), &advice);
            }
        }
    }
}

fn permissions(pools: &[Pool], pods: Pods) -> BTreeSet<Permission> {
    let mut all = BTreeSet::new();
    for target in pools.iter().flat_map(|pool| &pool.discover) {
        let Target::Kubernetes(service) = target else { continue };
        let mut add = |group, resource, verb| {
            all.insert((service.namespace.clone(), group, resource, verb));
        };
        for verb in ["get", "list", "watch"] {
            add("discovery.k8s.io", "endpointslices", verb);
            if pods.details {
                add("", "pods", verb);
            }
        }
        if pods.annotations.any() {
            add("", "pods", "patch");
        }
    }
    all
}

async fn is_allowed(
    client: &Client,
    (namespace, group, resource, verb): &Permission,
) -> Result<bool, kube::Error> {
    let attributes = ResourceAttributes {
        namespace: Some(namespace.clone()),
        group: Some((*group).to_owned()),
        resource: Some((*resource).to_owned()),
        verb: Some((*verb).to_owned()),
        ..ResourceAttributes::default()
    };
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let answer = api.create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

/// How far the clock of the API server is from that of this machine. `None` if the answer has no date.
async fn clock_skew(client: &Client) -> Result<Option<Duration>, kube::Error> {
    let request = Request::get("/version").body(Body::empty()).map_err(kube::Error::HttpError)?;
    let answer = client.send(request).await?;
    let date = answer.headers().get(DATE).and_then(|date| date.to_str().ok());
    let date = date.and_then(|date| httpdate::parse_http_date(date).ok());
    let now = SystemTime::now();
    Ok(date.map(|date| date.duration_since(now).unwrap_or_else(|earlier| earlier.duration())))
}
