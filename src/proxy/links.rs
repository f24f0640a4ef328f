//! Finds the link for a call that belongs to a known session, build or record.

use std::sync::Arc;

use http::HeaderMap;

use super::Proxy;
use crate::{
    client::Client,
    directory::{Bound, Caller, Lookup},
    error::ProxyError,
    ids::{self, BindingKey, Id, TraceId},
    relay::ByteCounts,
    upstream::Link,
};

impl Proxy {
    /// The link and byte counts for a call of `client` with `headers` that belongs to `key`. `None` if `key` is
    /// unknown. Bindings that ended not long ago are known.
    ///
    /// # Errors
    /// The Solve was refused, or the backend has left the fleet.
    pub fn known_link(
        &self,
        key: &BindingKey,
        client: &Client,
        headers: &HeaderMap,
    ) -> Result<Option<(Link, Arc<ByteCounts>)>, ProxyError> {
        self.found(
            self.directory.lookup(key),
            key,
            client,
            ids::trace(headers, client.identity.as_ref()),
        )
    }

    /// The link and byte counts for a call of `client` and `trace` with the ref `build`. `None` if the build is
    /// unknown. Builds that ended not long ago are known.
    ///
    /// # Errors
    /// The Solve was refused, the backend has left the fleet, or several builds have this ref.
    pub fn known_build(
        &self,
        build: &Id,
        client: &Client,
        trace: Option<TraceId>,
    ) -> Result<Option<(Link, Arc<ByteCounts>)>, ProxyError> {
        let caller = Caller { connection: client.connection, trace };
        let lookup = self.directory.lookup_build(build, caller);
        self.found(lookup, &BindingKey::Build(build.clone()), client, trace)
    }

    /// The link for a call about the record of `build`, which may belong to any client. `None` if the build is
    /// unknown.
    ///
    /// # Errors
    /// The Solve was refused, or the backend has left the fleet.
    pub fn known_record(
        &self,
        build: &Id,
        client: &Client,
        headers: &HeaderMap,
    ) -> Result<Option<Link>, ProxyError> {
        let keys = [
            BindingKey::Namesake(build.clone(), client.connection),
            BindingKey::Build(build.clone()),
        ];
        for key in &keys {
            if let Some((link, _byte_counts)) = self.known_link(key, client, headers)? {
                return Ok(Some(link));
            }
        }
        Ok(None)
    }

    /// The link and byte counts for a call of `client` and `trace` that belongs to `key`, by the result of its
    /// `lookup`.
    ///
    /// # Errors
    /// The Solve was refused, or the backend has left the fleet.
    pub fn found(
        &self,
        lookup: Lookup,
        key: &BindingKey,
        client: &Client,
        trace: Option<TraceId>,
    ) -> Result<Option<(Link, Arc<ByteCounts>)>, ProxyError> {
        match lookup {
            Lookup::Live(bound) => Ok(Some(self.live_link(key, bound, client, trace))),
            Lookup::Ended(name) => match self.fleet.find(&name) {
                Some(backend) => Ok(Some((self.shared.for_call(&backend, client), Arc::default()))),
                None => Err(ProxyError::BackendDeparted {
                    backend: name.to_string(),
                    build: key.to_string(),
                }),
            },
            Lookup::Refused(error) => Err(error),
            Lookup::Unknown => Ok(None),
        }
    }

    /// The link for a call of `client` that belongs to the live binding `bound` of `key`. Only calls of the build
    /// itself get the build's own link.
    fn live_link(
        &self,
        key: &BindingKey,
        bound: Bound,
        client: &Client,
        trace: Option<TraceId>,
    ) -> (Link, Arc<ByteCounts>) {
        let own = match key {
            BindingKey::Build(id) => self.carriers.carries(id, client, trace),
            BindingKey::Namesake(_, connection) => *connection == client.connection,
            _ => false,
        };
        let link = &bound.binding.link;
        let link = if own { link.clone() } else { self.shared.for_call(link.backend(), client) };
        (link, bound.byte_counts)
    }
}
