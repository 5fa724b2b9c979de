//! Receipts: signed proof that a request was let through for a user, to go with that user's rating.
//!
//! 1. A receipt names an agent, the user it acted for, one request, and when: nothing else.
//! 2. Its form is `1.<key id>.<body>.<mac>`. Body and mac are base64url without padding (RFC 4648
//!    section 5). The body is the time in Unix seconds (8 bytes, big-endian), the request (16
//!    bytes), the agent's length (1 byte), the agent, the user. The mac is HMAC-SHA-256 over
//!    all that stands before its dot. Another form gets another number.
//! 3. The key id says which key to try, never how: there is one algorithm.
//! 4. It is valid for [`VALID_FOR`]. That it counts once is for its reader to see to: the request's
//!    name, drawn at random here and by nobody else, is what to remember.

use std::{
    fmt,
    str::FromStr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderName, HeaderValue};

use crate::{AGENT_ID_MAX, AgentId};

#[cfg(feature = "aws-lc-rs")]
mod mac;

#[cfg(not(feature = "aws-lc-rs"))]
#[path = "mac_absent.rs"]
mod mac;

/// The field that carries a receipt in an answer.
pub const RECEIPT_FIELD: HeaderName = HeaderName::from_static("merit-receipt");

/// How long a receipt is valid: 7 days.
pub const VALID_FOR: Duration = Duration::from_secs(7 * 24 * 3600);

/// How far ahead of the reader's clock a receipt may have been issued: 60 s.
pub const CLOCK_DIFFERENCE_MAX: Duration = Duration::from_secs(60);

/// The longest user that a receipt can name, in bytes of UTF-8.
pub const RATER_MAX: usize = 256;

/// The shortest secret, in bytes (RFC 2104 section 3: the length of the hash).
pub const SECRET_MIN: usize = 32;

/// The longest id of a key, in characters.
pub const KEY_ID_MAX: usize = 32;

/// The most keys.
pub const KEYS_MAX: usize = 16;

/// The longest receipt, in characters (all of them visible ASCII).
pub const RECEIPT_MAX: usize = 2 + KEY_ID_MAX + 1 + base64_len(BODY_MAX) + 1 + base64_len(MAC);

const VERSION: &str = "1";
const MAC: usize = 32;
const TIME: usize = 8;
const REQUEST: usize = 16;
/// What stands before the agent: time, request, the agent's length.
const HEAD: usize = TIME + REQUEST + 1;
const BODY_MAX: usize = HEAD + AGENT_ID_MAX + RATER_MAX;

const fn base64_len(bytes: usize) -> usize {
    (bytes * 4).div_ceil(3)
}

/// One admitted request: 128 random bits, shown as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(u128);

/// A text is not 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be 32 lower-case hexadecimal digits")]
#[non_exhaustive]
pub struct RequestIdError;

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for RequestId {
    type Err = RequestIdError;

    fn from_str(text: &str) -> Result<Self, RequestIdError> {
        let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() != 2 * REQUEST || !text.bytes().all(digit) {
            return Err(RequestIdError);
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| RequestIdError)
    }
}

impl From<[u8; REQUEST]> for RequestId {
    fn from(bytes: [u8; REQUEST]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }
}

/// What a receipt that verifies says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// The agent whose request was admitted.
    pub agent: AgentId,
    /// The user for whom it acted: who may rate it.
    pub rater: Box<str>,
    /// The request: it proves one interaction, so it may count once.
    pub request: RequestId,
    /// When the request was admitted, to the second.
    pub issued_at: SystemTime,
}

/// Why a receipt proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiptError {
    /// It is not of the form that this version reads.
    #[error("is no receipt: send the `merit-receipt` field of the rated answer as it came")]
    Malformed,
    /// It names a key that is not among ours.
    #[error("is signed with a key that is not known here")]
    UnknownKey,
    /// It was not signed by us, or was changed since.
    #[error("has a signature that does not verify")]
    BadSignature,
    /// It is older than [`VALID_FOR`].
    #[error("has expired: it was valid for {} days", VALID_FOR.as_secs() / (24 * 3600))]
    Expired,
    /// It was issued ahead of our clock.
    #[error("was issued more than {} s ahead of our clock", CLOCK_DIFFERENCE_MAX.as_secs())]
    FromTheFuture,
}

/// Why a receipt cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IssueError {
    /// The user's name does not fit, or holds control characters.
    #[error("rater must be 1 to {RATER_MAX} bytes long without control characters, has {length}")]
    Rater {
        /// Its length in bytes.
        length: usize,
    },
}

/// Why keys cannot be used. No secret is repeated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiptKeysError {
    /// There is none, or more than [`KEYS_MAX`].
    #[error("must hold 1 to {KEYS_MAX} keys, has {count}")]
    Count {
        /// How many there are.
        count: usize,
    },
    /// A key's id is malformed.
    #[error(
        "id of key {number} must be 1 to {KEY_ID_MAX} characters of `[A-Za-z0-9_-]`; write \
         id:secret"
    )]
    Id {
        /// Which key, from 1.
        number: usize,
    },
    /// A secret is too short.
    #[error("secret of key {number} must be at least {SECRET_MIN} bytes long, has {length}")]
    ShortSecret {
        /// Which key, from 1.
        number: usize,
        /// Its length in bytes.
        length: usize,
    },
    /// An id is there twice: a receipt could not say which key it means.
    #[error("id of key {number} stands twice")]
    Repeated {
        /// The second of the two, from 1.
        number: usize,
    },
    /// The crate was built without a signature backend.
    #[error("tower-merit was built without a signature backend: enable its feature `aws-lc-rs`")]
    NoBackend,
}

/// The keys of receipts: the first signs, all verify. Clones share them.
///
/// To rotate: add the new key at the end everywhere, then put it first everywhere, then drop the
/// old one once [`VALID_FOR`] has passed.
///
/// ```
/// use std::time::SystemTime;
/// use tower_merit::receipt::{ReceiptKeys, RequestId};
///
/// let keys = ReceiptKeys::new([("2026-11", "a secret of at least thirty-two bytes")])?;
/// let request = RequestId::from([7; 16]); // the layer draws a random one
/// let receipt = keys.sign(&"a1".parse()?, "u1", request, SystemTime::now())?;
/// let said = keys.verify(&receipt, SystemTime::now())?;
/// assert_eq!((said.agent.as_str(), &*said.rater, said.request), ("a1", "u1", request));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct ReceiptKeys {
    keys: Arc<[(Box<str>, mac::Key)]>,
}

/// Secrets are not shown.
impl fmt::Debug for ReceiptKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|(id, _)| id)).finish()
    }
}

impl ReceiptKeys {
    /// Returns these keys, each as its id and its secret.
    ///
    /// # Errors
    ///
    /// When there is none or too many, an id is malformed or repeated, a secret is shorter than
    /// [`SECRET_MIN`], or the crate was built without a signature backend.
    pub fn new<Id: AsRef<str>, Secret: AsRef<[u8]>>(
        keys: impl IntoIterator<Item = (Id, Secret)>,
    ) -> Result<Self, ReceiptKeysError> {
        let mut taken: Vec<(Box<str>, mac::Key)> = Vec::new();
        let mut count = 0;
        for (id, secret) in keys {
            count += 1;
            if count > KEYS_MAX {
                continue;
            }
            let (id, secret, number) = (id.as_ref(), secret.as_ref(), count);
            if !is_key_id(id) {
                return Err(ReceiptKeysError::Id { number });
            }
            if secret.len() < SECRET_MIN {
                return Err(ReceiptKeysError::ShortSecret { number, length: secret.len() });
            }
            if taken.iter().any(|(other, _)| **other == *id) {
                return Err(ReceiptKeysError::Repeated { number });
            }
            taken.push((id.into(), mac::Key::new(secret)?));
        }
        match count {
            1..=KEYS_MAX => Ok(Self { keys: taken.into() }),
            count => Err(ReceiptKeysError::Count { count }),
        }
    }

    /// Returns the keys in `text`: `id:secret` each, separated by commas or line breaks (which a
    /// secret cannot hold here; base64 never does). Spaces
    /// around a key are no part of it; empty lines are skipped.
    ///
    /// # Errors
    ///
    /// As [`ReceiptKeys::new`]; a key without a colon has a malformed id.
    pub fn parse(text: &str) -> Result<Self, ReceiptKeysError> {
        let keys = text.split([',', '\n']).map(str::trim).filter(|key| !key.is_empty());
        Self::new(keys.map(|key| key.split_once(':').unwrap_or(("", key))))
    }

    /// Returns the receipt for `request`, which `agent` made for `rater`.
    ///
    /// # Errors
    ///
    /// When `rater` is empty, longer than [`RATER_MAX`] or holds control characters.
    ///
    /// # Panics
    ///
    /// When `issued_at` is before 1970.
    pub fn sign(
        &self,
        agent: &AgentId,
        rater: &str,
        request: RequestId,
        issued_at: SystemTime,
    ) -> Result<String, IssueError> {
        if !is_rater(rater) {
            return Err(IssueError::Rater { length: rater.len() });
        }
        let since = issued_at.duration_since(UNIX_EPOCH).expect("receipts are issued after 1970");
        let agent = agent.as_str().as_bytes();
        let mut body = Vec::with_capacity(HEAD + agent.len() + rater.len());
        body.extend_from_slice(&since.as_secs().to_be_bytes());
        body.extend_from_slice(&request.0.to_be_bytes());
        body.push(u8::try_from(agent.len()).expect("an agent id has at most 128 characters"));
        body.extend_from_slice(agent);
        body.extend_from_slice(rater.as_bytes());

        let (id, key) = &self.keys[0];
        let mut receipt = String::with_capacity(RECEIPT_MAX);
        receipt.push_str(VERSION);
        receipt.push('.');
        receipt.push_str(id);
        receipt.push('.');
        URL_SAFE_NO_PAD.encode_string(&body, &mut receipt);
        let mac = key.sign(receipt.as_bytes());
        receipt.push('.');
        URL_SAFE_NO_PAD.encode_string(mac, &mut receipt);
        debug_assert!(receipt.len() <= RECEIPT_MAX);
        Ok(receipt)
    }

    /// Returns what `receipt` says, if it proves it at `now`.
    ///
    /// The signature is compared in constant time, and before anything that it covers is read.
    ///
    /// # Errors
    ///
    /// When it is malformed, of an unknown key, not signed by it, expired, or from the future.
    pub fn verify(&self, receipt: &str, now: SystemTime) -> Result<Receipt, ReceiptError> {
        if receipt.len() > RECEIPT_MAX {
            return Err(ReceiptError::Malformed);
        }
        let (signed, mac) = receipt.rsplit_once('.').ok_or(ReceiptError::Malformed)?;
        let mut parts = signed.split('.');
        let (Some(VERSION), Some(id), Some(body), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(ReceiptError::Malformed);
        };
        // Neither padding nor stray bits at the end: one receipt has one spelling.
        let decoded = |text| URL_SAFE_NO_PAD.decode(text).map_err(|_| ReceiptError::Malformed);
        let mac = decoded(mac)?;
        let known = |(key_id, _): &&(Box<str>, mac::Key)| **key_id == *id;
        let (_, key) = self.keys.iter().find(known).ok_or(ReceiptError::UnknownKey)?;
        if !key.verifies(signed.as_bytes(), &mac) {
            return Err(ReceiptError::BadSignature);
        }
        let receipt = read(&decoded(body)?).ok_or(ReceiptError::Malformed)?;
        if receipt.issued_at > now + CLOCK_DIFFERENCE_MAX {
            return Err(ReceiptError::FromTheFuture);
        }
        if now > receipt.issued_at + VALID_FOR {
            return Err(ReceiptError::Expired);
        }
        Ok(receipt)
    }

    /// Returns the field for a new request that `agent` made for `rater`.
    pub(crate) fn issue(&self, agent: &AgentId, rater: &str) -> Result<HeaderValue, IssueError> {
        let receipt = self.sign(agent, rater, RequestId(mac::random()), SystemTime::now())?;
        Ok(HeaderValue::try_from(receipt).expect("a receipt is visible ASCII"))
    }
}

fn is_key_id(id: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    (1..=KEY_ID_MAX).contains(&id.len()) && id.chars().all(allowed)
}

fn is_rater(text: &str) -> bool {
    (1..=RATER_MAX).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// Returns what a body says; nothing when it is not one that we make.
fn read(body: &[u8]) -> Option<Receipt> {
    let (seconds, rest) = body.split_first_chunk::<TIME>()?;
    let (request, rest) = rest.split_first_chunk::<REQUEST>()?;
    let (length, rest) = rest.split_first()?;
    let (agent, rater) = rest.split_at_checked(usize::from(*length))?;
    let agent = AgentId::new(std::str::from_utf8(agent).ok()?).ok()?;
    let rater = std::str::from_utf8(rater).ok().filter(|rater| is_rater(rater))?;
    let issued_at = UNIX_EPOCH.checked_add(Duration::from_secs(u64::from_be_bytes(*seconds)))?;
    // So that the end of its validity is a time too.
    issued_at.checked_add(VALID_FOR)?;
    Some(Receipt { agent, rater: rater.into(), request: RequestId::from(*request), issued_at })
}

#[cfg(test)]
mod tests;
