//! Tests of the store.

use super::*;

#[test]
fn a_blob_is_stored_once_under_its_digest() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let digest = store.put(&b"hello"[..], 5).unwrap();
    assert_eq!(digest.hex(), "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
    assert!(store.has(&digest));
    assert_eq!(store.put(&b"hello"[..], 5).unwrap(), digest);
    assert_eq!(store.blobs().unwrap(), [(digest, 5)]);
}
