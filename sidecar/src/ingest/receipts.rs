//! Proof of interaction: whether the user was really served by the agent that the rating moves.
//!
//! 1. A receipt holds for the agent whose limits the rating moves, and for the user who rates:
//!    anybody else's proves nothing.
//! 2. A receipt that does not hold counts as none. With [`ReceiptMode::Prefer`] the rating is taken
//!    without; with [`ReceiptMode::Require`] it is refused, and told why.
//! 3. That a receipt counts once is the tuner's to see to: it knows what was counted.

use std::time::{Duration, UNIX_EPOCH};

use metrics::{Counter, counter};
use tower_merit::{ReceiptKeys, receipt::ReceiptError};

use crate::rating::{Rating, ReceiptId, SubjectMode};

/// What a rating needs a receipt for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ReceiptMode {
    /// For nothing: receipts are not looked at.
    #[default]
    Off,
    /// To count in full: ratings without one are taken, and marked so.
    Prefer,
    /// To be taken at all.
    Require,
}

/// Why a rating has no receipt that holds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiptFault {
    /// There is none.
    #[error("is missing: send the `merit-receipt` field of the rated answer")]
    Missing,
    /// It does not verify.
    #[error(transparent)]
    Invalid(#[from] ReceiptError),
    /// It is for another agent, or the rating moves none.
    #[error("is for another agent than the rated one")]
    OtherAgent,
    /// It is for another user.
    #[error("is for another user than the one who rates")]
    OtherUser,
}

impl ReceiptFault {
    fn label(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Invalid(ReceiptError::Malformed) => "malformed",
            Self::Invalid(ReceiptError::UnknownKey) => "unknown_key",
            Self::Invalid(ReceiptError::BadSignature) => "bad_signature",
            Self::Invalid(ReceiptError::Expired) => "expired",
            Self::Invalid(ReceiptError::FromTheFuture) => "from_the_future",
            Self::Invalid(_) => "invalid",
            Self::OtherAgent => "other_agent",
            Self::OtherUser => "other_user",
        }
    }
}

/// Looks at receipts, as configured.
#[derive(Clone)]
pub struct Receipts {
    checks: Option<Checks>,
}

#[derive(Clone)]
struct Checks {
    keys: ReceiptKeys,
    required: bool,
    /// Of those that hold: the others are not the hot path.
    valid: Counter,
}

impl std::fmt::Debug for Receipts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let checks = self.checks.as_ref().map(|checks| (&checks.keys, checks.required));
        f.debug_tuple("Receipts").field(&checks).finish()
    }
}

impl Receipts {
    /// Returns what does not look at receipts.
    #[must_use]
    pub fn off() -> Self {
        Self { checks: None }
    }

    /// Returns what verifies receipts with `keys`, and refuses ratings without one if `required`.
    #[must_use]
    pub fn verified_with(keys: ReceiptKeys, required: bool) -> Self {
        Self { checks: Some(Checks { keys, required, valid: checked("valid") }) }
    }

    /// Returns whether receipts are looked at.
    pub(super) fn are_checked(&self) -> bool {
        self.checks.is_some()
    }

    /// Returns `rating`, noting what its receipt proves.
    ///
    /// # Errors
    ///
    /// When it must have a receipt that holds, and has none.
    pub(super) fn check(&self, rating: Rating, mode: SubjectMode) -> Result<Rating, ReceiptFault> {
        let Some(checks) = &self.checks else { return Ok(rating) };
        match checks.request(&rating, mode) {
            Ok(request) => {
                checks.valid.increment(1);
                Ok(rating.receipted(request))
            }
            Err(fault) => {
                checked(fault.label()).increment(1);
                if checks.required { Err(fault) } else { Ok(rating) }
            }
        }
    }
}

fn checked(outcome: &'static str) -> Counter {
    counter!("merit_receipts_checked_total", "outcome" => outcome)
}

impl Checks {
    /// Returns the request for which `rating` has a receipt that holds.
    fn request(&self, rating: &Rating, mode: SubjectMode) -> Result<ReceiptId, ReceiptFault> {
        let receipt = rating.receipt().ok_or(ReceiptFault::Missing)?;
        let accepted_at = UNIX_EPOCH + Duration::from_micros(rating.accepted_at_us());
        let receipt = self.keys.verify(receipt.as_str(), accepted_at)?;
        if rating.subject(mode).as_ref() != Some(&receipt.agent) {
            return Err(ReceiptFault::OtherAgent);
        }
        if *rating.user().as_str() != *receipt.rater {
            return Err(ReceiptFault::OtherUser);
        }
        let request = receipt.request.to_string();
        Ok(ReceiptId::new(&request).expect("32 hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use tower_merit::{AgentId, receipt::RequestId};

    use super::*;
    use crate::rating::{Poster, RatingRequest};

    const NOW_S: u64 = 1_800_000_000;

    fn keys(id: &str) -> ReceiptKeys {
        ReceiptKeys::new([(id, format!("the secret of {id} is long enough to sign"))]).unwrap()
    }

    fn at(second: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(second)
    }

    fn receipt(keys: &ReceiptKeys, issued_s: u64) -> String {
        let agent = AgentId::new("a1").unwrap();
        keys.sign(&agent, "u1", RequestId::from([0xab; 16]), at(issued_s)).unwrap()
    }

    fn rating(agent: &str, user: &str, receipt: Option<&str>) -> Rating {
        let body = serde_json::json!({
            "agent_id": agent, "user_id": user, "score": 5, "receipt": receipt,
        });
        let request = RatingRequest::from_json(body.to_string().as_bytes()).unwrap();
        request.into_rating(Poster::new("p").unwrap(), NOW_S * 1_000_000).unwrap()
    }

    #[test]
    fn only_a_receipt_for_the_rated_agent_and_the_rating_user_holds() {
        let good = receipt(&keys("k1"), NOW_S);
        let mut tampered = good.clone();
        tampered.replace_range(20..21, if &good[20..21] == "A" { "B" } else { "A" });
        let invalid = |error| Some(ReceiptFault::Invalid(error));
        for (rating, fault) in [
            (rating("a1", "u1", Some(&good)), None),
            (rating("a2", "u1", Some(&good)), Some(ReceiptFault::OtherAgent)),
            (rating("a1", "u2", Some(&good)), Some(ReceiptFault::OtherUser)),
            (rating("a1", "u1", None), Some(ReceiptFault::Missing)),
            (rating("a1", "u1", Some("x")), invalid(ReceiptError::Malformed)),
            (rating("a1", "u1", Some(&tampered)), invalid(ReceiptError::BadSignature)),
            (
                rating("a1", "u1", Some(&receipt(&keys("k2"), NOW_S))),
                invalid(ReceiptError::UnknownKey),
            ),
            (
                rating("a1", "u1", Some(&receipt(&keys("k1"), NOW_S - 8 * 86_400))),
                invalid(ReceiptError::Expired),
            ),
            (
                rating("a1", "u1", Some(&receipt(&keys("k1"), NOW_S + 3600))),
                invalid(ReceiptError::FromTheFuture),
            ),
        ] {
            let strict = Receipts::verified_with(keys("k1"), true);
            let checked = strict.check(rating.clone(), SubjectMode::Agent);
            let id = checked.as_ref().ok().and_then(|rating| rating.receipt_id());
            assert_eq!(id.map(ReceiptId::as_str), fault.is_none().then_some(&*"ab".repeat(16)));
            assert_eq!(checked.err(), fault, "{rating:?}");

            let lenient = Receipts::verified_with(keys("k1"), false);
            let taken = lenient.check(rating.clone(), SubjectMode::Agent).unwrap();
            assert_eq!(taken.receipt_id().is_some(), fault.is_none(), "{rating:?}");

            let taken = Receipts::off().check(rating.clone(), SubjectMode::Agent).unwrap();
            assert_eq!(taken, rating);
        }
    }

    #[test]
    fn a_rating_that_moves_no_limit_has_no_agent_to_prove() {
        let receipt = receipt(&keys("k1"), NOW_S);
        let body = format!(r#"{{"item_id":"a1","user_id":"u1","score":5,"receipt":"{receipt}"}}"#);
        let request = RatingRequest::from_json(body.as_bytes()).unwrap();
        let item = request.into_rating(Poster::new("p").unwrap(), NOW_S * 1_000_000).unwrap();
        let strict = Receipts::verified_with(keys("k1"), true);
        let refused = strict.check(item.clone(), SubjectMode::Agent);
        assert_eq!(refused, Err(ReceiptFault::OtherAgent));
        assert!(strict.check(item, SubjectMode::Item).unwrap().receipt_id().is_some());
    }

    #[test]
    fn no_secret_is_shown() {
        let shown = format!("{:?}", Receipts::verified_with(keys("k1"), true));
        assert_eq!(shown, r#"Receipts(Some((["k1"], true)))"#);
    }
}
