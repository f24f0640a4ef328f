//! What a SolveRequest says about where its build belongs.
//!
//! The reader is permissive: a missing or odd value leaves a field empty, and the daemon gets the bytes as they came.

use std::sync::Arc;

use crate::{
    affinity::AffinityKey,
    client::Weight,
    directory::{Caller, Placing, Ties},
    identity::Identity,
    ids::{BindingKey, Id, SessionId, TraceId},
    placement::Wish,
    policy::KeyHash,
    wire::{
        fields::Malformed,
        solve::{SolveField, visit_fields},
    },
};

/// Sessions of other builds that one Solve may name. buildx opens one session for all contexts of a bake, and a target
/// that uses another target's contexts names a few more. Each takes 400 bytes for as long as the build runs.
const MAX_SHARED_SESSIONS: usize = 128;

/// The routing facts of one Solve.
#[derive(Debug, Default)]
pub struct Solve {
    /// The ref of the build.
    pub build: Option<Id>,
    /// The session that the build opens itself.
    pub session: Option<SessionId>,
    /// Sessions of other builds that this build reads from. Only their daemon can run the build.
    pub shared: Vec<SessionId>,
    /// Whether the Solve is a client's probe (`Internal`). A probe must not decide where the build goes.
    pub internal: bool,
    /// Whether the build uses the result of another target (`context:NAME=input:…`) and therefore belongs with that
    /// target.
    pub linked: bool,
    /// Whether the client may run several linked builds; see [`Solve::follows`].
    groups: bool,
    /// The client that owns the build; `None` if it has no identity.
    owner: Option<Arc<Identity>>,
    /// The affinity key, once it is known.
    pub affinity: Option<Arc<AffinityKey>>,
}

impl Solve {
    /// Reads all but the affinity key from a serialised SolveRequest of `owner`. What is kept is small, however large
    /// the request.
    ///
    /// # Errors
    /// `request` is not a protobuf message.
    pub fn read(request: &[u8], owner: Option<Arc<Identity>>) -> Result<Self, Malformed> {
        let mut solve = Self { owner, ..Self::default() };
        let mut policy_session = None;
        visit_fields(request, |field| match field {
            SolveField::SourcePolicySession(id) => policy_session = Some(id),
            field => solve.take(field),
        })?;
        policy_session.into_iter().for_each(|id| solve.share(id));
        Ok(solve)
    }

    /// The session and the ref of a Solve of `owner`, of which only the `start` could be read.
    pub fn ids_at_start(start: &[u8], owner: Option<Arc<Identity>>) -> Vec<BindingKey> {
        let mut solve = Self { owner, ..Self::default() };
        // The start ends in the middle of a field, so an error is expected.
        let _ = visit_fields(start, |field| solve.take(field));
        solve.own_keys()
    }

    /// Whether the Solve names more sessions of other builds than any build needs.
    pub fn is_crowded(&self) -> bool {
        self.shared.len() > MAX_SHARED_SESSIONS
    }

    fn take(&mut self, field: SolveField<'_>) {
        match field {
            SolveField::Ref(id) => self.build = Id::new(id, self.owner.as_ref()),
            SolveField::Session(id) => self.session = SessionId::new(id, self.owner.as_ref()),
            SolveField::Internal(internal) => self.internal = internal,
            SolveField::Option { name, value } => self.option(name, value),
            _ => {}
        }
    }

    fn share(&mut self, session: &[u8]) {
        let session = SessionId::new(session, self.owner.as_ref());
        let new = session.filter(|id| !self.is_crowded() && !self.shared.contains(id));
        self.shared.extend(new);
    }

    /// The client that owns the build; `None` if it has no identity.
    pub fn owner(&self) -> Option<&Arc<Identity>> {
        self.owner.as_ref()
    }

    /// The keys that the other calls of this build use.
    pub fn own_keys(&self) -> Vec<BindingKey> {
        let session = self.session.clone().map(BindingKey::Session);
        session.into_iter().chain(self.build.clone().map(BindingKey::Build)).collect()
    }

    /// All sessions that the Solve names, including its own.
    pub fn sessions(&self) -> Vec<SessionId> {
        self.shared.iter().chain(&self.session).cloned().collect()
    }

    fn option(&mut self, name: &[u8], value: &[u8]) {
        if name.starts_with(b"local-sessionid:") {
            self.share(value);
        }
        self.linked |= name.starts_with(b"context:") && value.starts_with(b"input:");
        self.groups |= self.linked || name == b"filename";
    }

    /// The keys that bind the build, the strongest first: a session that already serves files decides.
    fn keys(&self, own: &[BindingKey]) -> Vec<BindingKey> {
        let shared = self.shared.iter().cloned().map(BindingKey::Session);
        shared.chain(own.iter().cloned()).collect()
    }

    /// Where the build belongs, as far as the Solve says.
    ///
    /// If `scattered`, a connection does not show which builds belong together. With `spread`, a target that is not
    /// linked is placed on its own.
    pub fn wish(&self, placing: &Placing, caller: Caller, scattered: bool, spread: bool) -> Wish {
        let Caller { connection, trace } = caller;
        let alone = spread && !self.linked;
        let follows = if alone { Vec::new() } else { self.follows(trace, connection, scattered) };
        // A probe must not decide where later builds go.
        let attracts = if alone || self.internal {
            Vec::new()
        } else {
            invocation(trace, connection, self.groups)
        };
        let (own, apart) = (placing.own().to_vec(), placing.apart().to_vec());
        let ties = Ties { keys: self.keys(&own), own, follows, attracts, apart, connection };
        Wish {
            ties: Arc::new(ties),
            build: self.build.clone(),
            linked: self.linked,
            key: self.affinity.as_ref().map(|affinity| KeyHash::new(&affinity.key)),
            affinity: self.affinity.clone(),
            preferred: None,
            by_load: false,
            probe: self.internal,
            weight: Weight::ONE,
            span: None,
        }
    }

    /// The keys under which the build finds other builds of its own invocation.
    ///
    /// Targets of one `buildx bake` may be linked later, so all of them go to one daemon. They share a trace and a
    /// connection. A trace alone proves nothing, because CI gives all builds of a pipeline one trace (`TRACEPARENT`).
    /// It is used in two cases: for a linked target, whose input must be somewhere else if it is not on this
    /// connection, and for builds of buildx behind a hop that mixes connections. buildctl sets no `filename` and builds
    /// one target for each invocation.
    fn follows(&self, trace: Option<TraceId>, connection: u64, scattered: bool) -> Vec<BindingKey> {
        invocation(trace, connection, self.linked || scattered && self.groups)
    }
}

/// The keys of an invocation, the strongest first. With `by_trace`, the trace alone is one of them.
pub(super) fn invocation(
    trace: Option<TraceId>,
    connection: u64,
    by_trace: bool,
) -> Vec<BindingKey> {
    let Some(trace) = trace else { return vec![BindingKey::Connection(connection)] };
    let by_trace = by_trace.then_some(BindingKey::Trace(trace));
    std::iter::once(BindingKey::TraceOnConnection(trace, connection)).chain(by_trace).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::directory::Directory;
    use crate::wire::control::{Attr, SolveRequest};

    fn attr(key: &str, value: &str) -> Attr {
        Attr { key: key.to_owned().into(), value: value.to_owned().into() }
    }

    fn read(request: &SolveRequest) -> Solve {
        Solve::read(&request.encode_to_vec(), None).expect("valid")
    }

    fn session(text: &str) -> BindingKey {
        BindingKey::Session(SessionId::new(text.as_bytes(), None).expect("valid"))
    }

    /// The wish of a call with a trace on connection 7.
    fn wish(solve: &Solve, spread: bool) -> Wish {
        let caller = Caller { connection: 7, trace: Some(TraceId::new([1; 16], None)) };
        let placing = Directory::default().placing(None, None, caller).expect("no other");
        solve.wish(&placing, caller, false, spread)
    }

    fn id(text: &str) -> Id {
        Id::new(text.as_bytes(), None).expect("valid")
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
        let keys = [session("shared"), session("own"), BindingKey::Build(id("r"))];
        assert_eq!(solve.keys(&keys[1..]), keys);
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
    fn builds_of_one_trace_meet_only_where_more_proves_that_they_belong_together() {
        let solve = |attrs: &[(&str, &str)]| {
            let frontend_attrs = attrs.iter().map(|(key, value)| attr(key, value)).collect();
            read(&SolveRequest { frontend_attrs, ..Default::default() })
        };
        let buildctl = solve(&[]);
        let buildx = solve(&[("filename", "Dockerfile")]);
        let linked = solve(&[("filename", "Dockerfile"), ("context:base", "input:0-b")]);
        let trace = TraceId::new([1; 16], None);
        let (here, anywhere) = (BindingKey::TraceOnConnection(trace, 7), BindingKey::Trace(trace));
        let follows = |solve: &Solve, hop| solve.follows(Some(trace), 7, hop);
        for (solve, direct, behind_a_hop) in [(&buildctl, 1, 1), (&buildx, 1, 2), (&linked, 2, 2)] {
            let both = [here.clone(), anywhere.clone()];
            assert_eq!(follows(solve, false), both[..direct]);
            assert_eq!(follows(solve, true), both[..behind_a_hop]);
        }
        assert_eq!(buildx.follows(None, 7, true), [BindingKey::Connection(7)]);
        // A later target that is linked finds this build by its trace, on whichever connection it comes.
        assert_eq!(wish(&buildx, false).ties.attracts, [here, anywhere]);
    }

    #[test]
    fn a_probe_draws_nobody_and_spread_targets_go_their_own_way() {
        let ties = |request: SolveRequest, spread| wish(&read(&request), spread).ties;
        let probe = ties(SolveRequest { internal: true, ..Default::default() }, false);
        assert_eq!((probe.follows.len(), probe.attracts.len()), (1, 0));
        let target = ties(SolveRequest::default(), true);
        assert_eq!((target.follows.len(), target.attracts.len()), (0, 0));
    }

    #[test]
    fn only_so_many_sessions_of_others_are_kept() {
        let with = |count: usize| {
            let shared = |number| attr("local-sessionid:context", &format!("s{}", number / 2));
            let frontend_attrs = (0..2 * count).map(shared).collect();
            read(&SolveRequest { frontend_attrs, ..Default::default() })
        };
        assert!(!with(MAX_SHARED_SESSIONS).is_crowded());
        let crowded = with(1000);
        assert!(crowded.is_crowded() && crowded.shared.len() == MAX_SHARED_SESSIONS + 1);
    }

    #[test]
    fn the_start_of_a_request_has_its_ids() {
        let request = SolveRequest {
            r#ref: "r".into(),
            session: "own".into(),
            frontend_attrs: vec![attr("build-arg:X", &"x".repeat(5000))],
            ..Default::default()
        };
        let start = request.encode_to_vec();
        let keys = [session("own"), BindingKey::Build(id("r"))];
        assert_eq!(Solve::ids_at_start(&start[..100], None), keys);
        assert_eq!(Solve::ids_at_start(&start[..2], None), []);
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
            prop_assert_eq!(solve.build, Id::new(&request.r#ref, None));
            prop_assert_eq!(solve.session, SessionId::new(&request.session, None));
            prop_assert_eq!(solve.internal, internal);
            let named = options.iter().filter(|(name, _)| name.starts_with("local-sessionid:"));
            let named = named.map(|(_, value)| value.as_bytes());
            let shared = named.chain([&request.source_policy_session[..]]);
            let shared = shared.filter_map(|id| SessionId::new(id, None));
            let mut distinct = Vec::new();
            for id in shared {
                if !distinct.contains(&id) {
                    distinct.push(id);
                }
            }
            prop_assert_eq!(solve.shared, distinct);
        }

        #[test]
        fn any_bytes_are_read_or_refused(request: Vec<u8>) {
            let _ = Solve::read(&request, None);
        }
    }
}
