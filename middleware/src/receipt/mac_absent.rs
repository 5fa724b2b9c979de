//! A build without a signature backend has no keys, and so never signs nor verifies.

use std::convert::Infallible;

use super::{MAC, ReceiptKeysError};

/// A key, of which there is none.
pub(super) struct Key(Infallible);

impl Key {
    pub(super) fn new(_: &[u8]) -> Result<Self, ReceiptKeysError> {
        Err(ReceiptKeysError::NoBackend)
    }

    pub(super) fn sign(&self, _: &[u8]) -> [u8; MAC] {
        match self.0 {}
    }

    pub(super) fn verifies(&self, _: &[u8], _: &[u8]) -> bool {
        match self.0 {}
    }
}

/// Nobody who has keys can call this here.
pub(super) fn random() -> u128 {
    0
}
