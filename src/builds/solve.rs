//! What a SolveRequest says about where its build belongs. Read permissively: whatever is missing or
//! odd leaves a field empty, and the bytes go to the daemon as they came.

use std::sync::Arc;

use crate::{
    affinity::AffinityKey,
    directory::Ties,
    ids::{Id, Key, TraceId},
    placement::Wish,
    policy::KeyHash,
    wire::{
        fields::Malformed,
        solve::{Part, parts},
    },
};

/// Sessions one Solve may name; a bake of a hundred contexts names a hundred.
const MAX_SHARED_SESSIONS: usize = 1024;

/// The routing facts of one Solve.
#[derive(Debug, Default)]
pub struct Solve {
    /// Ref of the build.
    pub build: Option<Id>,
    /// The session it opens itself.
    pub session: Option<Id>,
    /// Sessions of others that it uses: their daemon is the only one that can build it.
    pub shared: Vec<Id>,
    /// A probe of the client's (`Internal`): it must not decide where the build goes.
    pub internal: bool,
    /// It uses another target's result (`context:NAME=input:…`), so belongs with its siblings.
    pub linked: bool,
    /// Its client may run several linked builds; see [`Solve::companions`].
    groups: bool,
    /// What its cache is known by.
    pub affinity: Option<AffinityKey>,
}

impl Solve {
    /// Reads all but the affinity key from a serialised SolveRequest, however large: what is kept of it is small.
    ///
    /// # Errors
    /// `request` is no protobuf message.
    pub fn read(request: &[u8]) -> Result<Self, Malformed> {
        let mut solve = Self::default();
        let mut policy_session = None;
        parts(request, |part| match part {
            Part::Ref(id) => solve.build = Id::new(id),
            Part::Session(id) => solve.session = Id::new(id),
            Part::SourcePolicySession(id) => policy_session = Id::new(id),
            Part::Internal(internal) => solve.internal = internal,
            Part::Option { name, value } => solve.option(name, value),
            _ => {}
        })?;
        solve.shared.extend(policy_session);
        Ok(solve)
    }

    fn option(&mut self, name: &[u8], value: &[u8]) {
        if name.starts_with(b"local-sessionid:") {
            self.shared.extend(Id::new(value).filter(|_| self.shared.len() < MAX_SHARED_SESSIONS));
        }
        self.linked |= name.starts_with(b"context:") && value.starts_with(b"input:");
        self.groups |= self.linked || name == b"filename";
    }

    /// Its own ids.
    pub fn own(&self) -> Vec<Key> {
        let session = self.session.iter().cloned().map(Key::Session);
        session.chain(self.build.iter().cloned().map(Key::Build)).collect()
    }

    /// The ids it is bound by, the strongest first: a session that already serves files decides.
    fn keys(&self) -> Vec<Key> {
        let shared = self.shared.iter().cloned().map(Key::Session);
        shared.chain(self.own()).collect()
    }

    /// Where it belongs, as far as it says. With `spread`, a target that is not linked goes its own way.
    pub fn wish(&self, trace: Option<TraceId>, connection: u64, spread: bool) -> Wish {
        let follows =
            if spread && !self.linked { Vec::new() } else { self.companions(trace, connection) };
        // A probe must not decide where the builds after it go.
        let attracts = if self.internal { Vec::new() } else { follows.clone() };
        let ties = Ties { keys: self.keys(), own: self.own(), follows, attracts };
        Wish {
            ties: Arc::new(ties),
            build: self.build.clone(),
            linked: self.linked,
            key: self.affinity.as_ref().map(|affinity| KeyHash::new(&affinity.key)),
            preferred: None,
            by_load: false,
        }
    }

    /// Keys under which builds of the same invocation find each other.
    ///
    /// Targets of one `buildx bake` may be linked later, so all go to one daemon. They share a trace
    /// id. CI may give many independent `buildctl` runs one trace id too (`TRACEPARENT`); these build
    /// one target each and set no `filename`, which buildx always does, so they share a backend only
    /// when they share a connection.
    fn companions(&self, trace: Option<TraceId>, connection: u64) -> Vec<Key> {
        match trace {
            Some(trace) if self.groups || self.internal => vec![Key::Trace(trace)],
            Some(trace) => vec![Key::TraceOnConnection(trace, connection)],
            None => vec![Key::Connection(connection)],
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::wire::control::{Attr, SolveRequest};

    fn attr(key: &str, value: &str) -> Attr {
        Attr { key: key.to_owned().into(), value: value.to_owned().into() }
    }

    fn read(request: &SolveRequest) -> Solve {
        Solve::read(&request.encode_to_vec()).expect("valid")
    }

    fn id(text: &str) -> Id {
        Id::new(text.as_bytes()).expect("valid")
    }

    #[test]
    fn shared_sessions_come_before_the_own_one() {
        let request = SolveRequest {
            r#ref: "r".into(),
            session: "own".into(),
            frontend_attrs: vec![
                attr("local-sessionid:context", "shared"),
                attr("filename", "Dockerfile"),
            ],
            ..Default::default()
        };
        let solve = read(&request);
        let keys = [Key::Session(id("shared")), Key::Session(id("own")), Key::Build(id("r"))];
        assert_eq!(solve.keys(), keys);
        assert!(!solve.linked);
    }

    #[test]
    fn an_input_context_links() {
        let linked = |key, value| {
            let frontend_attrs = vec![attr(key, value)];
            read(&SolveRequest { frontend_attrs, ..Default::default() }).linked
        };
        assert!(linked("context:base", "input:0-b"));
        assert!(!linked("context:base", "docker-image://scratch"));
        assert!(!linked("context", "input:x"));
    }

    #[test]
    fn independent_builds_of_one_trace_meet_only_on_one_connection() {
        let plain = read(&SolveRequest::default());
        assert_eq!(plain.companions(Some([1; 16]), 7), [Key::TraceOnConnection([1; 16], 7)]);
        let frontend_attrs = vec![attr("filename", "Dockerfile")];
        let buildx = read(&SolveRequest { frontend_attrs, ..Default::default() });
        assert_eq!(buildx.companions(Some([1; 16]), 7), [Key::Trace([1; 16])]);
        assert_eq!(buildx.companions(None, 7), [Key::Connection(7)]);
    }

    proptest! {
        #[test]
        fn a_walk_finds_the_ids_that_a_decoder_finds(
            build: Vec<u8>,
            session: Vec<u8>,
            source_policy_session: Vec<u8>,
            internal: bool,
            options in prop::collection::vec(("(local-sessionid:)?[a-z]{1,3}", "[a-z]{0,3}"), 0..9),
        ) {
            let request = SolveRequest {
                r#ref: build.into(),
                session: session.into(),
                source_policy_session: source_policy_session.into(),
                internal,
                frontend_attrs: options.iter().map(|(name, value)| attr(name, value)).collect(),
                ..Default::default()
            };
            let solve = read(&request);
            prop_assert_eq!(solve.build, Id::new(&request.r#ref));
            prop_assert_eq!(solve.session, Id::new(&request.session));
            prop_assert_eq!(solve.internal, internal);
            let named = options.iter().filter(|(name, _)| name.starts_with("local-sessionid:"));
            let named = named.map(|(_, value)| value.as_bytes());
            let shared = named.chain([&request.source_policy_session[..]]).filter_map(Id::new);
            prop_assert_eq!(solve.shared, Vec::from_iter(shared));
        }

        #[test]
        fn any_bytes_are_read_or_refused(request: Vec<u8>) {
            let _ = Solve::read(&request);
        }
    }
}
