use k8s_openapi::api::core::v1::ObjectReference;
use proptest::prelude::*;

use super::*;

fn slice(family: &str, ports: &[(&str, i32)], entries: Vec<Entry>) -> EndpointSlice {
    let port = |&(name, port): &(&str, i32)| EndpointPort {
        name: Some(name.to_owned()),
        port: Some(port),
        ..EndpointPort::default()
    };
    EndpointSlice {
        address_type: family.to_owned(),
        endpoints: Some(entries),
        ports: Some(ports.iter().map(port).collect()),
        ..EndpointSlice::default()
    }
}

fn v4(entries: Vec<Entry>) -> EndpointSlice {
    slice("IPv4", &[("buildkit", 1234)], entries)
}

/// A pod with `ready`, `serving` and `terminating`: `t`, `f` or `-` for none.
fn pod(name: &str, address: &str, conditions: &str) -> Entry {
    let mut flags = conditions.chars().map(|flag| match flag {
        't' => Some(true),
        'f' => Some(false),
        _ => None,
    });
    let mut flag = || flags.next().flatten();
    Entry {
        addresses: vec![address.to_owned()],
        conditions: Some(EndpointConditions {
            ready: flag(),
            serving: flag(),
            terminating: flag(),
        }),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            name: Some(name.to_owned()),
            uid: Some(format!("uid-of-{name}")),
            ..ObjectReference::default()
        }),
        ..Entry::default()
    }
}

fn with_uid(mut entry: Entry, uid: &str) -> Entry {
    if let Some(target) = &mut entry.target_ref {
        target.uid = Some(uid.to_owned());
    }
    entry
}

fn found(slices: &[EndpointSlice]) -> Vec<String> {
    found_at(slices, &Port::Usual)
}

fn found_at(slices: &[EndpointSlice], port: &Port) -> Vec<String> {
    endpoints(slices, port, None)
        .iter()
        .map(|e| format!("{}={} {:?}", e.name, e.address.authority(), e.condition))
        .collect()
}

#[test]
fn conditions_mean_what_kubernetes_means_by_them() {
    for (conditions, expected) in [
        ("---", "Ready"),
        ("t--", "Ready"),
        ("ttf", "Ready"),
        ("f--", "NotReady"),
        ("fff", "NotReady"),
        ("tff", "NotReady"),
        ("ftt", "Terminating"),
        ("fft", "Terminating"),
        ("ttt", "Terminating"),
    ] {
        let slices = [v4(vec![pod("a", "10.0.0.1", conditions)])];
        assert_eq!(found(&slices), [format!("a=10.0.0.1:1234 {expected}")], "{conditions}");
    }
    let without = Entry { conditions: None, ..pod("a", "10.0.0.1", "") };
    assert_eq!(found(&[v4(vec![without])]), ["a=10.0.0.1:1234 Ready"]);
}

#[test]
fn a_pod_of_two_families_is_one_daemon_by_its_ipv4_address() {
    let six = slice(
        "IPv6",
        &[("buildkit", 1234)],
        vec![pod("a", "fd00::1", "ttf"), pod("only-six", "fd00::2", "ttf")],
    );
    let four = v4(vec![pod("a", "10.0.0.1", "fff")]);
    let expected = ["a=10.0.0.1:1234 Ready", "only-six=[fd00::2]:1234 Ready"];
    assert_eq!(found(&[six.clone(), four.clone()]), expected);
    assert_eq!(found(&[four, six]), expected);
}

#[test]
fn a_pod_that_moves_between_slices_is_one_daemon_and_ends_once() {
    let old = v4(vec![pod("a", "10.0.0.1", "ttf")]);
    let new = v4(vec![pod("a", "10.0.0.1", "ftt"), pod("b", "10.0.0.2", "ttf")]);
    let expected = ["a=10.0.0.1:1234 Terminating", "b=10.0.0.2:1234 Ready"];
    assert_eq!(found(&[old.clone(), new.clone()]), expected);
    assert_eq!(found(&[new, old]), expected);
}

#[test]
fn the_next_pod_of_a_name_takes_the_place_of_one_that_ends() {
    let old = with_uid(pod("a-0", "10.0.0.1", "ftt"), "1");
    let new = with_uid(pod("a-0", "10.0.0.9", "ttf"), "2");
    assert_eq!(found(&[v4(vec![old, new])]), ["a-0=10.0.0.9:1234 Ready"]);
}

#[test]
fn an_address_given_on_to_another_pod_counts_once() {
    let slices = [v4(vec![pod("a", "10.0.0.1", "fft"), pod("b", "10.0.0.1", "ttf")])];
    assert_eq!(found(&slices), ["b=10.0.0.1:1234 Ready"]);
}

#[test]
fn names_come_from_target_then_hostname_then_address() {
    let named = |hostname: Option<&str>, address: &str| Entry {
        addresses: vec![address.to_owned()],
        hostname: hostname.map(str::to_owned),
        ..Entry::default()
    };
    let entries = vec![
        pod("pod", "10.0.0.1", ""),
        named(Some("host"), "10.0.0.2"),
        named(None, "10.0.0.3"),
        named(Some(""), "10.0.0.4"),
    ];
    let expected = [
        "10.0.0.3=10.0.0.3:1234 Ready",
        "10.0.0.4=10.0.0.4:1234 Ready",
        "host=10.0.0.2:1234 Ready",
        "pod=10.0.0.1:1234 Ready",
    ];
    assert_eq!(found(&[v4(entries)]), expected);
}

#[test]
fn ports_are_found_by_number_by_name_and_by_habit() {
    let at = |ports: &[(&str, i32)], port: &Port| {
        let slices = [slice("IPv4", ports, vec![pod("a", "10.0.0.1", "")])];
        endpoints(&slices, port, None).first().map(|endpoint| endpoint.address.authority())
    };
    let name = |name: &str| Port::Name(name.to_owned());
    let some = |port: u16| Some(format!("10.0.0.1:{port}"));
    let two = [("metrics", 1), ("grpc", 2)];
    assert_eq!(at(&two, &Port::Usual), some(2));
    assert_eq!(at(&two, &name("metrics")), some(1));
    assert_eq!(at(&two, &name("nobody")), None);
    assert_eq!(at(&two, &Port::Number(7)), some(7));
    assert_eq!(at(&[("odd", 9)], &Port::Usual), some(9));
    assert_eq!(at(&[("odd", 9), ("even", 8)], &Port::Usual), None);
    assert_eq!(at(&[("grpc", 2), ("buildkit", 3)], &Port::Usual), some(3));
    assert_eq!(at(&[("", 1234)], &Port::Usual), some(1234));
    assert_eq!(at(&[], &Port::Usual), None);
    assert_eq!(at(&[], &Port::Number(7)), some(7));
    for wrong in [0, -1, 65_536, i32::MAX] {
        assert_eq!(at(&[("grpc", wrong)], &Port::Usual), None);
    }
    let slices = [slice("IPv4", &two, Vec::new())];
    assert_eq!(port_names(&slices), "grpc (2), metrics (1)");
}

#[test]
fn a_named_port_may_differ_from_slice_to_slice() {
    let slices = [
        slice("IPv4", &[("grpc", 1)], vec![pod("a", "10.0.0.1", "")]),
        slice("IPv4", &[("grpc", 2)], vec![pod("b", "10.0.0.2", "")]),
    ];
    assert_eq!(found(&slices), ["a=10.0.0.1:1 Ready", "b=10.0.0.2:2 Ready"]);
}

#[test]
fn zone_node_and_pod_are_kept() {
    let mut entry = Entry {
        zone: Some("westeurope-1".to_owned()),
        node_name: Some("node-7".to_owned()),
        ..pod("a", "10.0.0.1", "")
    };
    if let Some(target) = &mut entry.target_ref {
        target.namespace = Some("ci".to_owned());
    }
    let found = endpoints(&[v4(vec![entry])], &Port::Usual, None);
    let location = &found[0].location;
    assert_eq!(
        (location.zone.as_deref(), location.node.as_deref()),
        (Some("westeurope-1"), Some("node-7"))
    );
    let pod = location.pod.as_ref().map(|pod| (&*pod.namespace, &*pod.name, &*pod.uid));
    assert_eq!(pod, Some(("ci", "a", "uid-of-a")));
}

#[test]
fn a_named_port_of_the_service_serves_the_metrics_of_its_pods() {
    let ports = [("buildkit", 1234), ("debug", 6060)];
    let six = slice("IPv6", &[("buildkit", 1234), ("debug", 6061)], vec![pod("a", "fd00::1", "")]);
    let four = slice("IPv4", &ports, vec![pod("a", "10.0.0.1", "")]);
    let metrics = |slices: &[EndpointSlice], name| {
        let metrics = endpoints(slices, &Port::Usual, name).remove(0).location.metrics;
        metrics.map(|metrics| metrics.to_string())
    };
    let slices = [six, four];
    assert_eq!(metrics(&slices, Some("debug")).as_deref(), Some("10.0.0.1:6060"));
    assert_eq!(metrics(&slices[..1], Some("debug")).as_deref(), Some("[fd00::1]:6061"));
    assert_eq!((metrics(&slices, Some("none")), metrics(&slices, None)), (None, None));
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-c]", "10\\.0\\.0\\.[1-3]", "fd00::[1-3]", "IPv[46]|FQDN", "\\PC{0,12}"]
}

fn entry() -> impl Strategy<Value = Entry> {
    let flag = || proptest::option::of(any::<bool>());
    let conditions = proptest::option::of((flag(), flag(), flag()));
    let target = proptest::option::of((proptest::option::of(text()), proptest::option::of(text())));
    let hostname = proptest::option::of(text());
    (proptest::collection::vec(text(), 0..3), conditions, target, hostname).prop_map(
        |(addresses, conditions, target, hostname)| Entry {
            addresses,
            conditions: conditions.map(|(ready, serving, terminating)| EndpointConditions {
                ready,
                serving,
                terminating,
            }),
            target_ref: target.map(|(name, uid)| ObjectReference {
                name,
                uid,
                ..ObjectReference::default()
            }),
            hostname,
            ..Entry::default()
        },
    )
}

fn any_slice() -> impl Strategy<Value = EndpointSlice> {
    let port = (proptest::option::of("grpc|tcp|x|"), proptest::option::of(any::<i32>()))
        .prop_map(|(name, port)| EndpointPort { name, port, ..EndpointPort::default() });
    let ports = proptest::option::of(proptest::collection::vec(port, 0..4));
    let entries = proptest::option::of(proptest::collection::vec(entry(), 0..8));
    (text(), entries, ports).prop_map(|(address_type, endpoints, ports)| EndpointSlice {
        address_type,
        endpoints,
        ports,
        ..EndpointSlice::default()
    })
}

proptest! {
    #[test]
    fn whatever_the_slices_say_names_and_addresses_come_once_and_order_is_nothing(
        mut slices in proptest::collection::vec(any_slice(), 0..6),
        number in proptest::option::of(1..=u16::MAX),
    ) {
        let port = number.map_or(Port::Usual, Port::Number);
        let found = endpoints(&slices, &port, None);
        let names: std::collections::HashSet<_> = found.iter().map(|e| &e.name).collect();
        let addresses: std::collections::HashSet<_> = found.iter().map(|e| &e.address).collect();
        prop_assert_eq!((names.len(), addresses.len()), (found.len(), found.len()));
        slices.reverse();
        let again = endpoints(&slices, &port, None);
        let key = |found: &[Endpoint]| -> Vec<_> {
            found.iter().map(|e| (e.name.clone(), e.address.clone(), e.condition)).collect()
        };
        prop_assert_eq!(key(&found), key(&again));
    }
}
