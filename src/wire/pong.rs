//! What a PongResponse promises: the features that a client may use in its build.
//!
//! Numbers are those of frontend/gateway/pb/gateway.proto and util/apicaps/pb/caps.proto (BuildKit v0.32.2).

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;

use super::{
    Payload, WireError,
    fields::{Fields, Malformed, Value},
    payload, unpack,
};

/// Features of frontends (list 1) and of build definitions (list 2), each by list and id. Cheap to clone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Features(Arc<BTreeSet<(u32, Box<[u8]>)>>);

impl Features {
    /// The features that `pong`, one framed PongResponse, says are enabled.
    ///
    /// # Errors
    /// It is no such message.
    pub fn read(pong: &Bytes) -> Result<Self, WireError> {
        Ok(match payload(pong)? {
            Payload::Plain(plain) => Self::of(&plain)?,
            Payload::Gzip(packed) => Self::of(&unpack(&packed)?)?,
        })
    }

    fn of(pong: &[u8]) -> Result<Self, Malformed> {
        let mut features = BTreeSet::new();
        for field in Fields::new(pong) {
            if let (list @ (1 | 2), Value::Bytes(feature)) = field?
                && let Some(id) = enabled(feature)?
            {
                features.insert((list, id.into()));
            }
        }
        Ok(Self(Arc::new(features)))
    }

    /// Whether all of `others` are among these.
    pub fn cover(&self, others: &Self) -> bool {
        others.0.is_subset(&self.0)
    }
}

/// The id of `feature` if it is enabled.
fn enabled(feature: &[u8]) -> Result<Option<&[u8]>, Malformed> {
    let (mut id, mut enabled) = (None, false);
    for field in Fields::new(feature) {
        match field? {
            (1, Value::Bytes(text)) => id = Some(text),
            (2, Value::Number(number)) => enabled = number != 0,
            _ => {}
        }
    }
    Ok(id.filter(|_| enabled))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::frame, *};

    /// A feature of one list.
    fn feature(list: u8, id: &str, enabled: bool) -> Vec<u8> {
        let mut feature = vec![1 << 3 | 2, u8::try_from(id.len()).expect("short")];
        feature.extend_from_slice(id.as_bytes());
        feature.extend_from_slice(&[2 << 3, u8::from(enabled)]);
        [&[list << 3 | 2, u8::try_from(feature.len()).expect("short")], &feature[..]].concat()
    }

    fn features(parts: &[Vec<u8>]) -> Features {
        Features::read(&frame(&parts.concat())).expect("a PongResponse")
    }

    #[test]
    fn more_features_cover_fewer_and_no_others() {
        let (a, b) = (feature(1, "a", true), feature(1, "b", true));
        let both = features(&[a.clone(), b.clone()]);
        let one = features(&[a]);
        assert!(both.cover(&one) && one.cover(&one) && one.cover(&Features::default()));
        assert!(!one.cover(&both) && !one.cover(&features(&[b])));
    }

    #[test]
    fn a_feature_that_is_disabled_or_of_the_other_list_is_none() {
        let one = features(&[feature(1, "a", true)]);
        assert!(!features(&[feature(1, "a", false)]).cover(&one));
        assert!(!features(&[feature(2, "a", true)]).cover(&one));
        assert_eq!(features(&[feature(1, "a", false)]), Features::default());
    }

    #[test]
    fn workers_are_no_features() {
        assert_eq!(features(&[feature(3, "a worker", true)]), Features::default());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(pong: Vec<u8>) {
            let _ = Features::read(&frame(&pong));
        }
    }
}
