//! Who asks for personalised ratings, and whose they may see.
//!
//! A bearer token speaks for its own `sub`; with scope [`READ_ANY`] it may ask for any user.

use std::sync::Arc;

use http::{HeaderValue, Request, Response, StatusCode, header};
use tower_merit::{
    JwtVerifier, Problem,
    identity::{IdentityError, Token, bearer},
};

/// The scope that may read any user's personalised ratings.
pub const READ_ANY: &str = "ratings:read:any";
/// The realm of `WWW-Authenticate`.
const REALM: &str = "merit";

/// Learns who asks.
#[derive(Clone, Debug)]
pub struct Viewers {
    /// Absent when no keys of tokens are configured: then nobody can show who they are.
    verifier: Option<JwtVerifier>,
}

impl Viewers {
    /// Returns what learns who asks from tokens that `verifier` proves.
    #[must_use]
    pub fn new(verifier: Option<JwtVerifier>) -> Self {
        Self { verifier }
    }

    /// Returns the verified token of `request`. The answer borrows nothing of the request.
    pub(super) fn token<B>(
        &self,
        request: &Request<B>,
    ) -> impl Future<Output = Result<Arc<Token>, Refused>> + Send + 'static {
        let verifying = match (&self.verifier, bearer(request)) {
            (Some(verifier), Ok(token)) => Ok(verifier.verify(token)),
            (None, Ok(_)) => {
                let reason = "no keys of tokens are configured";
                Err(IdentityError::Unauthenticated { reason, presented: true })
            }
            (_, Err(error)) => Err(error),
        };
        async move {
            let verifying = verifying.map_err(Refused::Unauthenticated)?;
            verifying.await.map_err(Refused::Unauthenticated)
        }
    }
}

/// Returns the user whose scores `token` may see: `asked`, or its own when none is asked for.
pub(super) fn allowed(token: &Token, asked: Option<&str>) -> Result<String, Refused> {
    let own = token.subject.as_deref();
    match (asked, own) {
        (None, Some(own)) => Ok(own.to_owned()),
        (None, None) => {
            Err(Refused::Invalid("user_id", "must be given: the token has no `sub`".into()))
        }
        (Some(asked), own) if own == Some(asked) || token.has_scope(READ_ANY) => {
            Ok(asked.to_owned())
        }
        (Some(_), _) => Err(Refused::OtherUser),
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Refused {
    /// No token, or one that does not verify: 401, or 503 while its key cannot be fetched.
    Unauthenticated(IdentityError),
    /// Somebody else's scores: 403.
    OtherUser,
    /// A parameter, by name, and what is wrong with it: 400.
    Invalid(&'static str, String),
}

impl Refused {
    pub(super) fn into_response(self) -> Response<axum::body::Body> {
        let (status, detail) = match &self {
            Self::Unauthenticated(error) => (error.status(), error.to_string()),
            Self::OtherUser => (
                StatusCode::FORBIDDEN,
                format!(
                    "user_id must be the token's `sub`; reading others needs scope `{READ_ANY}`"
                ),
            ),
            Self::Invalid(name, problem) => (StatusCode::BAD_REQUEST, format!("{name}: {problem}")),
        };
        let mut problem = Problem::new(status, detail);
        match &self {
            Self::Invalid(name, _) => problem = problem.with("field", *name),
            Self::OtherUser => problem = problem.with("field", "user_id"),
            Self::Unauthenticated(_) => {}
        }
        let mut response = problem.into_response().map(axum::body::Body::from);
        match &self {
            Self::Unauthenticated(error) => {
                if let Some(challenge) = error.challenge(REALM) {
                    response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
                }
                if let Some(seconds) = error.retry_after_s() {
                    response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
                }
            }
            Self::OtherUser => {
                // RFC 6750 section 3.1.
                let text = format!(
                    "Bearer realm=\"{REALM}\", error=\"insufficient_scope\", scope=\"{READ_ANY}\""
                );
                let challenge = HeaderValue::from_str(&text).expect("scopes are printable");
                response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
            }
            Self::Invalid(..) => {}
        }
        response
    }
}
