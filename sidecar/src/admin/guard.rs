//! Who reaches the admin listener: by which name, and with which token.
//!
//! A web page on a name of its own can have that name resolve to this machine (DNS rebinding), and
//! then reads what it likes; but its requests carry that name in `Host`. Addresses cannot be
//! rebound, so where the listener takes all of a machine's addresses, any of them is taken.

use std::{io, net::IpAddr, path::PathBuf, sync::Arc};

use aws_lc_rs::{
    constant_time::verify_slices_are_equal,
    digest::{Digest, SHA256, digest},
};
use axum::{
    body::Body,
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use http::{HeaderValue, Method, StatusCode, header, uri::Authority};
use tower_merit::{Problem, identity::bearer};

use super::{Config, page};
use crate::secret::Unset;

/// The shortest admin token, in bytes: a random one of this length cannot be guessed.
pub const ADMIN_TOKEN_MIN: usize = 16;

const REALM: &str = "merit-admin";

/// Why the admin listener cannot be opened.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// The variable is not there, or is no text.
    #[error("admin.token_env: {0}")]
    Unset(#[from] Unset),
    /// The token could be guessed, or no header could carry it.
    #[error(
        "admin.token_env: token must be at least {ADMIN_TOKEN_MIN} visible ASCII characters, has {length}"
    )]
    Token {
        /// Its length in bytes.
        length: usize,
    },
    /// The audit log cannot be opened.
    #[error("admin.audit_log: cannot append to {}: {source}", path.display())]
    AuditLog {
        /// Where it was to be.
        path: PathBuf,
        /// Why not.
        source: Arc<io::Error>,
    },
    /// Other machines can reach the listener, and there is no token.
    #[error("admin.listen is not loopback, so admin.token_env must name a token")]
    Exposed,
}

/// What callers of the admin listener show; kept as a digest.
#[derive(Clone)]
pub struct AdminToken(Digest);

impl AdminToken {
    /// Returns `text` as a token.
    ///
    /// # Errors
    ///
    /// When it is shorter than [`ADMIN_TOKEN_MIN`] or holds characters that no header carries.
    pub fn new(text: &str) -> Result<Self, AdminError> {
        match text.len() >= ADMIN_TOKEN_MIN && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            true => Ok(Self(digest(&SHA256, text.as_bytes()))),
            false => Err(AdminError::Token { length: text.len() }),
        }
    }

    /// Returns true when `shown` is the token, in a time that tells nothing of it.
    #[must_use]
    pub fn is(&self, shown: &str) -> bool {
        let shown = digest(&SHA256, shown.as_bytes());
        verify_slices_are_equal(self.0.as_ref(), shown.as_ref()).is_ok()
    }
}

/// Secrets are not shown, nor their digests.
impl std::fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AdminToken")
    }
}

#[derive(Clone)]
pub(super) struct Guard {
    hosts: Arc<[String]>,
    listen: Option<IpAddr>,
    token: Option<AdminToken>,
    /// Whether even reading needs the token.
    exposed: bool,
}

impl Guard {
    pub(super) fn new(config: &Config, token: Option<AdminToken>) -> Result<Self, AdminError> {
        let exposed = config.is_exposed();
        if exposed && token.is_none() {
            return Err(AdminError::Exposed);
        }
        let listen = config.listen.map(|listen| listen.ip().to_canonical());
        Ok(Self { hosts: config.hosts.clone().into(), listen, token, exposed })
    }

    fn knows(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.');
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse::<IpAddr>() {
            let address = address.to_canonical();
            let own = self.listen.is_some_and(|own| own == address || own.is_unspecified());
            return address.is_loopback() || own;
        }
        host.eq_ignore_ascii_case("localhost")
            || self.hosts.iter().any(|name| name.eq_ignore_ascii_case(host))
    }
}

pub(super) async fn check(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    // HTTP/2 and absolute targets carry the host in the target.
    let target = request.uri().authority().cloned();
    let field = || request.headers().get(header::HOST)?.to_str().ok()?.parse::<Authority>().ok();
    let host = target.or_else(field);
    let known = |host: &Authority| !host.as_str().contains('@') && guard.knows(host.host());
    if !host.as_ref().is_some_and(known) {
        let detail = "`Host` is not a name of this listener; add it to admin.hosts";
        return Problem::new(StatusCode::MISDIRECTED_REQUEST, detail)
            .into_response()
            .map(Body::from);
    }
    // RFC 9110 section 9.2.1: what these ask for changes nothing.
    let reads = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if guard.token.is_none() && !reads {
        let detail = "nothing is changed without a token: name the variable that holds one in admin.token_env, and restart";
        return Problem::new(StatusCode::FORBIDDEN, detail).into_response().map(Body::from);
    }
    // The dashboard itself holds no data: it is there for who has yet to enter the token.
    let open = reads && (!guard.exposed || page::is_open(request.uri().path()));
    if let Some(token) = guard.token.as_ref().filter(|_| !open) {
        let refusal = match bearer(&request) {
            Ok(shown) if token.is(shown) => None,
            Ok(_) => Some(("the admin token is another one", ", error=\"invalid_token\"")),
            Err(_) => Some(("send `Authorization: Bearer <admin token>`", "")),
        };
        if let Some((detail, error)) = refusal {
            let mut response =
                Problem::new(StatusCode::UNAUTHORIZED, detail).into_response().map(Body::from);
            let challenge = format!("Bearer realm=\"{REALM}\"{error}");
            let challenge = HeaderValue::from_str(&challenge).expect("the realm is printable");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
            return response;
        }
    }
    next.run(request).await
}
