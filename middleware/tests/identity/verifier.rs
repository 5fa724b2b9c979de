//! Verifiers of the strict kind, and what they say to a token.

use std::{
    future::Future,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use serde_json::Value;
use tower_merit::{
    JwtIdentity, JwtVerifier,
    identity::{IdentityError, Token, jwt::Algorithm},
};

use crate::keys::{Pair, SECRET};

// What callers read.
pub(crate) const MALFORMED: &str = "the token is malformed";
pub(crate) const ALGORITHM: &str = "the token is signed with another algorithm";
pub(crate) const SIGNATURE: &str = "the token's signature does not verify";
pub(crate) const EXTENSION: &str = "the token's header asks for an extension that is not supported";
pub(crate) const UNKNOWN_KEY: &str = "the token is signed with a key that is not known";
pub(crate) const CLAIMS: &str =
    "the token lacks `exp`, `iss` or `aud`, or one of them is of the wrong type";
pub(crate) const EXPIRED: &str = "the token has expired";

pub(crate) fn strict(identity: JwtIdentity) -> JwtVerifier {
    identity.issuer("issuer").audience("service").leeway(Duration::ZERO).build().unwrap()
}

pub(crate) fn hs256() -> JwtVerifier {
    strict(JwtIdentity::hs256(SECRET))
}

/// A token whose key is configured is judged at once.
pub(crate) fn verify(verifier: &JwtVerifier, token: &str) -> Result<Arc<Token>, IdentityError> {
    match pin!(verifier.verify(token)).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => panic!("a configured key is waited for"),
    }
}

pub(crate) fn refused(verifier: &JwtVerifier, token: &str) -> &'static str {
    match verify(verifier, token) {
        Err(IdentityError::Unauthenticated { reason, presented: true }) => reason,
        other => panic!("{token}: {other:?}"),
    }
}

pub(crate) fn secret() -> Pair {
    Pair::Hmac(SECRET.to_vec())
}

pub(crate) fn sign(claims: &Value) -> String {
    secret().sign(Algorithm::HS256, None, claims)
}
