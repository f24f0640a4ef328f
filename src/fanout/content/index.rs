//! The manifests of image indexes: a record names the index of an image for several platforms, and its client goes on
//! to the manifests that the index names.
//!
//! An index is read when its owner asks for a blob that nothing else names, and only once: the manifests are
//! remembered like the blobs of a record. Only the daemon writes indexes and their manifests. What a manifest names is
//! not followed: its layers may be those of a base image, which belongs to nobody.

use serde::Deserialize;
use tokio::{sync::Semaphore, time::timeout};

use super::remember;
use crate::{
    client::Client,
    fanout::ANSWER_TIMEOUT,
    ids::Id,
    proxy::Proxy,
    upstream::Link,
    wire::{
        content::{ReadContentRequest, content_client::ContentClient},
        history::is_index,
    },
};

/// The largest index that is read, in bytes. An entry takes some hundreds.
const MAX_INDEX_LEN: usize = 1 << 20;

/// How many indexes are read for one question. Further ones are older, and their records can be listed again.
const MAX_READ: usize = 32;

/// How many indexes are read at once, so that questions for the same index do not all hold a copy of it.
static READERS: Semaphore = Semaphore::const_new(4);

/// An image index (OCI image specification, image index), as far as it is read.
#[derive(Debug, Deserialize)]
struct Index {
    manifests: Vec<Manifest>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    #[serde(default)]
    media_type: String,
    digest: String,
}

/// Reads the indexes of `client` that nobody has read yet, and remembers the manifests that they name as the client's
/// own. An index that cannot be read names none.
pub(super) async fn read_all(proxy: &Proxy, client: &Client) {
    let owner = client.identity.as_ref();
    let _reader = READERS.acquire().await;
    for _ in 0..MAX_READ {
        // An index may name another one, which is then the latest.
        let Some((index, backend)) = proxy.directory.indexes_of(owner).into_iter().next() else {
            return;
        };
        if let Some(backend) = proxy.fleet.find(&backend) {
            let read = read(proxy.shared.for_call(&backend, client), &index);
            let manifests = timeout(ANSWER_TIMEOUT, read).await.ok().flatten().unwrap_or_default();
            for manifest in manifests {
                if let Some(id) = Id::new(manifest.digest.as_bytes(), owner) {
                    let is_index = is_index(manifest.media_type.as_bytes());
                    remember(proxy, backend.shared_name(), id, is_index);
                }
            }
        }
        // Only now, because another question for one of the manifests may be asked meanwhile.
        proxy.directory.forget_index(&index);
    }
}

/// The manifests that `index` names.
async fn read(link: Link, index: &Id) -> Option<Vec<Manifest>> {
    let request = ReadContentRequest { digest: index.as_bytes().to_vec().into() };
    let mut pieces = ContentClient::new(link).read(request).await.ok()?.into_inner();
    let mut text = Vec::new();
    while let Some(piece) = pieces.message().await.ok()? {
        if text.len() + piece.data.len() > MAX_INDEX_LEN {
            return None;
        }
        text.extend_from_slice(&piece.data);
    }
    manifests(&text)
}

fn manifests(text: &[u8]) -> Option<Vec<Manifest>> {
    serde_json::from_slice::<Index>(text).ok().map(|index| index.manifests)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_index_names_manifests_and_other_indexes() {
        let text = br#"{"schemaVersion": 2, "manifests": [
            {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": "sha256:a", "size": 1},
            {"mediaType": "application/vnd.oci.image.index.v1+json", "digest": "sha256:b"}]}"#;
        let named = manifests(text).expect("an index");
        let told =
            named.iter().map(|named| (&*named.digest, is_index(named.media_type.as_bytes())));
        assert_eq!(told.collect::<Vec<_>>(), [("sha256:a", false), ("sha256:b", true)]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_index_or_not(text: Vec<u8>) {
            let _ = manifests(&text);
        }
    }
}
