//! HMAC-SHA-256 and randomness, by aws-lc-rs.

use aws_lc_rs::{hmac, rand};

use super::{MAC, REQUEST, ReceiptKeysError};

/// A key, ready for use. It has no `Debug`.
pub(super) struct Key(hmac::Key);

impl Key {
    #[allow(clippy::unnecessary_wraps, reason = "without a backend it fails")]
    pub(super) fn new(secret: &[u8]) -> Result<Self, ReceiptKeysError> {
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, secret)))
    }

    pub(super) fn sign(&self, text: &[u8]) -> [u8; MAC] {
        let tag = hmac::sign(&self.0, text);
        tag.as_ref().try_into().expect("HMAC-SHA-256 gives 32 bytes")
    }

    /// Compares in constant time.
    pub(super) fn verifies(&self, text: &[u8], mac: &[u8]) -> bool {
        hmac::verify(&self.0, text, mac).is_ok()
    }
}

/// Returns 128 random bits.
pub(super) fn random() -> u128 {
    let mut bytes = [0; REQUEST];
    rand::fill(&mut bytes).expect("the operating system gives random bytes");
    u128::from_be_bytes(bytes)
}
