//! The backend of digests and key checks: aws-lc. `no_backend.rs` stands here in a build without.

use aws_lc_rs::{
    digest::{SHA256, digest},
    signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey},
};

/// True when there is a backend.
pub(super) const PRESENT: bool = true;

/// Puts the backend in place where another crate in the build may have enabled a second one;
/// jsonwebtoken would panic at the first token otherwise.
pub(super) fn install() {
    let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
}

/// Returns the SHA-256 of `bytes`.
pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().try_into().expect("a SHA-256 digest has 32 bytes")
}

/// Returns true when the uncompressed point lies on P-256 (65 bytes) or P-384 (97 bytes).
pub(super) fn is_ec_point(point: &[u8]) -> bool {
    match point.len() {
        65 => ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).is_ok(),
        97 => ParsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point).is_ok(),
        _ => false,
    }
}

/// Returns true when the bytes are an Ed25519 public key.
pub(super) fn is_ed25519_key(key: &[u8]) -> bool {
    key.len() == 32 && ParsedPublicKey::new(&ED25519, key).is_ok()
}
