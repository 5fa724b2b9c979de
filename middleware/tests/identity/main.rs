//! Identities as strangers meet them: tokens, sets of keys, and whatever else comes from outside.

#![allow(clippy::unwrap_used)]

mod keys;

mod verifier;

mod signatures;

mod claims;

mod key_sets;

mod fuzz;
