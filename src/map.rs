//! The hash maps of the data path, whose keys clients choose.
//!
//! A short build looks up some hundred keys. The hasher of `std` takes several hundred instructions for each. This one takes
//! some tens, and its seeds are random in each process too, so that no client can choose keys that fall together: a client
//! never sees a hash, nor anything that depends on one.

use std::collections::HashMap;

/// A hash map with a fast hasher and random seeds.
pub type Map<K, V> = HashMap<K, V, foldhash::quality::RandomState>;
