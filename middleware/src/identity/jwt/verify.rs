//! One token: from its text to what it says, or to the reason why it says nothing.
//!
//! 1. Three parts in strict base64url; header and claims are JSON objects without repeated names.
//! 2. The header names an algorithm and perhaps a key id, and nothing else it says is followed:
//!    `jwk`, `jku`, `x5u` and `x5c` are not looked at. `crit` is refused, because nothing is
//!    understood that could stand in it (RFC 7515 section 4.1.11), and so are `b64`, which would
//!    change what is signed (RFC 7797), and `cty: JWT`, a token inside a token.
//! 3. Claims are read only after the signature has proved true.

use std::sync::Arc;

use jsonwebtoken::Algorithm;
use serde_json::{Map, Value};

use super::{
    super::{ClaimError, IdentityError, claims::ClaimPath, claims::parse_object},
    KID_MAX, TOKEN_MAX,
    keys::{Key, NoKey, decode},
};
use crate::AgentId;

/// The longest name of a rater, in bytes; a longer one is none.
pub const RATER_MAX: usize = 256;

/// What a verified token says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Token {
    /// The agent it names.
    pub agent: Result<AgentId, ClaimError>,
    /// The user for whom the agent acts, when a claim for that is configured, is there, and is a
    /// string of 1 to [`RATER_MAX`] bytes without control characters.
    pub rater: Option<Arc<str>>,
    /// `sub`, when it is a string.
    pub subject: Option<Box<str>>,
    /// `scope` (RFC 8693 section 4.2: names separated by spaces); empty when it is no string.
    pub scope: Box<str>,
    /// `exp`, in Unix seconds.
    pub expires_at: u64,
}

impl Token {
    /// Returns true when `scope` is among the token's scopes.
    #[must_use]
    pub fn has_scope(&self, scope: &str) -> bool {
        self.scope.split(' ').any(|name| name == scope)
    }
}

/// What a token must say.
#[derive(Clone)]
pub(super) struct Rules {
    pub(super) claim: ClaimPath,
    pub(super) rater: Option<ClaimPath>,
    pub(super) issuer: Option<String>,
    pub(super) audience: Option<String>,
    /// Seconds of clock difference that are forgiven.
    pub(super) leeway: u64,
}

/// A token whose form is right, and nothing more.
pub(super) struct Unverified<'a> {
    /// Header and claims, as they were signed.
    message: &'a str,
    claims: &'a str,
    signature: &'a str,
    pub(super) algorithm: Algorithm,
    pub(super) kid: Option<Box<str>>,
}

pub(super) fn invalid(reason: &'static str) -> IdentityError {
    IdentityError::Unauthenticated { reason, presented: true }
}

const MALFORMED: &str = "the token is malformed";
const ANOTHER_ALGORITHM: &str = "the token is signed with another algorithm";
const CLAIMS: &str = "the token lacks `exp`, `iss` or `aud`, or one of them is of the wrong type";

impl<'a> Unverified<'a> {
    pub(super) fn parse(token: &'a str) -> Result<Self, IdentityError> {
        if token.len() > TOKEN_MAX {
            return Err(invalid("the token is longer than 8 KiB"));
        }
        let malformed = || invalid(MALFORMED);
        let (message, signature) = token.rsplit_once('.').ok_or_else(malformed)?;
        let (header, claims) = message.split_once('.').ok_or_else(malformed)?;
        if claims.contains('.') {
            return Err(malformed());
        }
        let header = decode(header).ok_or_else(malformed)?;
        let header = parse_object(&header).map_err(|_| malformed())?;
        let name = header.get("alg").and_then(Value::as_str).ok_or_else(malformed)?;
        let algorithm = name.parse().map_err(|_| invalid(ANOTHER_ALGORITHM))?;
        if header.contains_key("crit") || header.contains_key("b64") {
            return Err(invalid("the token's header asks for an extension that is not supported"));
        }
        let nested = |kind: &str| kind.eq_ignore_ascii_case("jwt");
        if header.get("cty").is_some_and(|kind| kind.as_str().is_none_or(nested)) {
            return Err(invalid("the token holds another token"));
        }
        let kid = match header.get("kid") {
            None => None,
            Some(Value::String(id)) if (1..=KID_MAX).contains(&id.len()) => {
                Some(id.as_str().into())
            }
            Some(_) => return Err(malformed()),
        };
        Ok(Self { message, claims, signature, algorithm, kid })
    }

    /// Returns what the token says, once `key` has proved it true.
    pub(super) fn verify(
        &self,
        key: &Key,
        rules: &Rules,
        now: u64,
    ) -> Result<Token, IdentityError> {
        if !key.serves(self.algorithm) {
            return Err(invalid(ANOTHER_ALGORITHM));
        }
        if decode(self.signature).is_none() {
            return Err(invalid(MALFORMED));
        }
        if !key.verifies(self.message.as_bytes(), self.signature, self.algorithm) {
            return Err(invalid("the token's signature does not verify"));
        }
        let claims = decode(self.claims).ok_or(invalid(MALFORMED))?;
        let claims = parse_object(&claims).map_err(|_| invalid(MALFORMED))?;
        rules.read(&claims, now)
    }
}

/// Says why no key was picked.
pub(super) fn no_key(why: NoKey) -> IdentityError {
    invalid(match why {
        NoKey::Unknown => "the token is signed with a key that is not known",
        NoKey::Algorithm => ANOTHER_ALGORITHM,
        NoKey::Ambiguous => "the token names no key, and several could be meant",
    })
}

impl Rules {
    fn read(&self, claims: &Map<String, Value>, now: u64) -> Result<Token, IdentityError> {
        let expires_at = claims.get("exp").and_then(seconds).ok_or(invalid(CLAIMS))?;
        if self.earliest(now) >= expires_at {
            return Err(invalid("the token has expired"));
        }
        if let Some(not_before) = claims.get("nbf") {
            let not_before =
                seconds(not_before).ok_or(invalid("the token's `nbf` is not a time"))?;
            if now.saturating_add(self.leeway) < not_before {
                return Err(invalid("the token is not valid yet"));
            }
        }
        if let Some(issuer) = &self.issuer {
            let by = claims.get("iss").and_then(Value::as_str).ok_or(invalid(CLAIMS))?;
            if by != issuer {
                return Err(invalid("the token is by another issuer"));
            }
        }
        self.check_audience(claims.get("aud"))?;
        let text = |name| claims.get(name).and_then(Value::as_str);
        Ok(Token {
            agent: self.claim.agent(claims),
            rater: self.rater.as_ref().and_then(|path| rater(path, claims)),
            subject: text("sub").map(Into::into),
            scope: text("scope").unwrap_or_default().into(),
            expires_at,
        })
    }

    /// Returns the time that a token must not have expired at.
    pub(super) fn earliest(&self, now: u64) -> u64 {
        now.saturating_sub(self.leeway)
    }

    /// RFC 7519 section 4.1.3: whoever does not find himself in `aud` refuses the token.
    fn check_audience(&self, found: Option<&Value>) -> Result<(), IdentityError> {
        let another = invalid("the token is for another audience");
        let expected = match (&self.audience, found) {
            (None, None) => return Ok(()),
            (None, Some(_)) => return Err(another),
            (Some(_), None) => return Err(invalid(CLAIMS)),
            (Some(expected), Some(_)) => expected.as_str(),
        };
        match found {
            Some(Value::String(one)) if one == expected => Ok(()),
            Some(Value::String(_)) => Err(another),
            Some(Value::Array(all)) if all.iter().all(Value::is_string) => {
                let named = all.iter().any(|one| one == expected);
                named.then_some(()).ok_or(another)
            }
            _ => Err(invalid(CLAIMS)),
        }
    }
}

/// Reads a NumericDate, which may have a fraction (RFC 7519 section 2); it is cut, never rounded up.
fn seconds(value: &Value) -> Option<u64> {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked before")]
    let cut = |seconds: f64| (0.0..9.0e15).contains(&seconds).then_some(seconds as u64);
    value.as_u64().or_else(|| value.as_f64().and_then(cut))
}

fn rater(path: &ClaimPath, claims: &Map<String, Value>) -> Option<Arc<str>> {
    let name = path.find(claims)?.as_str()?;
    let sound = (1..=RATER_MAX).contains(&name.len()) && !name.chars().any(char::is_control);
    sound.then(|| name.into())
}
