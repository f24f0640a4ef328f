//! The objects that a watch has reported.

use std::collections::HashMap;

use kube::{ResourceExt, runtime::watcher::Event};

/// The objects of one namespace by name.
#[derive(Debug)]
pub(crate) struct Known<K> {
    objects: HashMap<String, K>,
    /// The objects read so far, while all are read again.
    arriving: HashMap<String, K>,
    /// Whether all objects have been read once.
    complete: bool,
}

impl<K> Default for Known<K> {
    fn default() -> Self {
        Self { objects: HashMap::new(), arriving: HashMap::new(), complete: false }
    }
}

impl<K: ResourceExt> Known<K> {
    /// Applies an event. Returns `true` if the objects may have changed.
    ///
    /// While all objects are read again, the old ones stay: half a list does not mean that the others are gone.
    pub(crate) fn apply(&mut self, event: Event<K>) -> bool {
        match event {
            Event::Apply(object) => {
                self.objects.insert(object.name_any(), object);
            }
            Event::Delete(object) => {
                self.objects.remove(&object.name_any());
            }
            Event::Init => self.arriving.clear(),
            Event::InitApply(object) => {
                self.arriving.insert(object.name_any(), object);
            }
            Event::InitDone => {
                self.objects = std::mem::take(&mut self.arriving);
                self.complete = true;
                return true;
            }
        }
        self.complete && self.arriving.is_empty()
    }

    /// Whether all objects have been read once.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Whether there is no object.
    pub(crate) fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// All objects.
    pub(crate) fn objects(&self) -> impl Iterator<Item = &K> {
        self.objects.values()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::discovery::v1::EndpointSlice;

    use super::*;

    fn slice(name: &str) -> EndpointSlice {
        let mut slice = EndpointSlice::default();
        slice.metadata.name = Some(name.to_owned());
        slice
    }

    fn names(known: &Known<EndpointSlice>) -> Vec<String> {
        known.objects().map(ResourceExt::name_any).collect()
    }

    #[test]
    fn half_a_list_is_no_fleet() {
        let mut known = Known::default();
        assert!(!known.apply(Event::Init));
        assert!(!known.apply(Event::InitApply(slice("one"))));
        assert!(!known.is_complete());
        assert!(known.apply(Event::InitDone));
        assert_eq!(names(&known), ["one"]);
        known.apply(Event::Init);
        assert!(!known.apply(Event::InitApply(slice("two"))));
        assert_eq!(names(&known), ["one"], "the old ones stay");
        assert!(known.apply(Event::InitDone));
        assert_eq!(names(&known), ["two"]);
        assert!(known.apply(Event::Delete(slice("two"))));
        assert!(known.is_empty());
    }
}
