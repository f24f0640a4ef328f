//! The hash maps of the data path, whose keys clients choose.
//!
//! A short build looks up some hundred keys. The hasher of `std` takes several hundred instructions for each. This one takes
//! some tens. Its seeds are random in each process, too, so that a client cannot choose keys that fall together: it sees
//! neither a hash nor the order of a map. What is left to it is the time of a lookup, some nanoseconds of a call that takes
//! a hundred microseconds.

use std::collections::HashMap;

/// A hash map with a fast hasher and random seeds.
pub type Map<K, V> = HashMap<K, V, foldhash::quality::RandomState>;
