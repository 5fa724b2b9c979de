//! A rating: what one user thought of one agent or item, parsed once at the edge and valid ever after.
//!
//! A [`RatingRequest`] is what a body says; [`RatingRequest::into_rating`] adds who posted it and
//! when, names it, and gives the [`Rating`] that travels over the bus. Every text has a bound, the
//! score is finite and in [1, 5], and all hashes are truncations of SHA-256, CRC-32 or Kafka's murmur2:
//! they are stored and compared across versions, so they may never change.

#[cfg(feature = "avro")]
mod avro;
pub mod confluent;
mod encoding;
mod error;
mod fields;
mod hash;
mod key;
mod parse;
pub mod proto;
mod request;
mod text;
mod timestamp;
mod wire;

pub use encoding::{Codec, Encoding, NoEncoding};
pub use error::RatingError;
pub use fields::{CONTEXT_MAX, CONTEXT_TEXT_MAX, Context, SCORE_MAX, SCORE_MIN, Scalar, Score};
pub use key::partition_for;
pub use request::RatingRequest;
pub use text::{
    CONTEXT_KEY_MAX, ContextKey, ItemId, Poster, RATING_ID_MAX, RECEIPT_ID_MAX, RECEIPT_MAX,
    RatingId, Receipt, ReceiptId, TEXT_MAX, TextError, UserId,
};
pub use timestamp::{FUTURE_MAX_MS, timestamp_from_text};
pub use wire::{FOREIGN_POSTER, from_bus_json, to_bus_json};

use std::sync::Arc;

use tower_merit::AgentId;

use crate::trace::TraceContext;

/// A valid rating that was accepted at the edge. Clones share what it says.
#[derive(Clone, Debug, PartialEq)]
pub struct Rating(Arc<Told>);

/// What a rating says.
#[derive(Clone, Debug, PartialEq)]
struct Told {
    id: RatingId,
    poster: Poster,
    agent: Option<AgentId>,
    user: UserId,
    item: Option<ItemId>,
    score: Score,
    timestamp_ms: u64,
    context: Context,
    receipt: Option<Receipt>,
    receipt_id: Option<ReceiptId>,
    accepted_at_us: u64,
    trace: Option<TraceContext>,
}

/// Whose limits a rating moves.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum SubjectMode {
    /// Only those of the agent that it names.
    #[default]
    Agent,
    /// Those of the agent that it names; when it names none, the item is the agent.
    Item,
}

impl Rating {
    /// Returns a rating as an archive tells it: it has no name, poster or circumstances of its own,
    /// so it is good for folding and not for the bus.
    #[must_use]
    pub fn recorded(agent: AgentId, user: UserId, score: Score, timestamp_ms: u64) -> Self {
        Self::of(Told {
            id: RatingId::new("recorded").expect("visible ASCII"),
            poster: Poster::new("recorded").expect("visible ASCII"),
            agent: Some(agent),
            user,
            item: None,
            score,
            timestamp_ms,
            context: Context::default(),
            receipt: None,
            receipt_id: None,
            accepted_at_us: timestamp_ms.saturating_mul(1000),
            trace: None,
        })
    }

    fn of(told: Told) -> Self {
        Self(Arc::new(told))
    }

    /// Returns the name of the event, unique per [`Rating::poster`].
    #[must_use]
    pub fn id(&self) -> &RatingId {
        &self.0.id
    }

    /// Returns who posted it: the principal that its id is scoped by.
    #[must_use]
    pub fn poster(&self) -> &Poster {
        &self.0.poster
    }

    /// Returns the agent that it names.
    #[must_use]
    pub fn agent(&self) -> Option<&AgentId> {
        self.0.agent.as_ref()
    }

    /// Returns who rates.
    #[must_use]
    pub fn user(&self) -> &UserId {
        &self.0.user
    }

    /// Returns the rated item.
    #[must_use]
    pub fn item(&self) -> Option<&ItemId> {
        self.0.item.as_ref()
    }

    /// Returns the score.
    #[must_use]
    pub fn score(&self) -> Score {
        self.0.score
    }

    /// Returns when the user rated, in Unix milliseconds.
    #[must_use]
    pub fn timestamp_ms(&self) -> u64 {
        self.0.timestamp_ms
    }

    /// Returns what else the producer told about the circumstances.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.0.context
    }

    /// Returns the proof of interaction as it came; [`Rating::receipt_id`] says whether it holds.
    #[must_use]
    pub fn receipt(&self) -> Option<&Receipt> {
        self.0.receipt.as_ref()
    }

    /// Returns the request that its receipt proves, when ingest verified one: such a rating counts
    /// once, whatever its id.
    #[must_use]
    pub fn receipt_id(&self) -> Option<&ReceiptId> {
        self.0.receipt_id.as_ref()
    }

    /// Notes that its receipt was verified, and which request that proves.
    #[must_use]
    pub fn receipted(mut self, id: ReceiptId) -> Self {
        Arc::make_mut(&mut self.0).receipt_id = Some(id);
        self
    }

    /// Returns when ingest accepted it, in Unix microseconds.
    #[must_use]
    pub fn accepted_at_us(&self) -> u64 {
        self.0.accepted_at_us
    }

    /// Notes the span that whatever becomes of it hangs below; it travels beside the rating, and no hash or
    /// encoding knows it.
    #[must_use]
    pub fn traced(mut self, trace: Option<TraceContext>) -> Self {
        if self.0.trace != trace {
            Arc::make_mut(&mut self.0).trace = trace;
        }
        self
    }

    /// Returns the span that whatever becomes of it hangs below.
    #[must_use]
    pub fn trace(&self) -> Option<TraceContext> {
        self.0.trace
    }

    /// Returns the agent whose limits this rating moves, if any.
    ///
    /// An item whose name is no well-formed agent id moves none.
    #[must_use]
    pub fn subject(&self, mode: SubjectMode) -> Option<AgentId> {
        match (&self.0.agent, mode) {
            (Some(agent), _) => Some(agent.clone()),
            (None, SubjectMode::Agent) => None,
            (None, SubjectMode::Item) => AgentId::new(self.0.item.as_ref()?.as_str()).ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rating(body: &str) -> Rating {
        let request = RatingRequest::from_json(body.as_bytes()).unwrap();
        request.into_rating(Poster::new("tests").unwrap(), 1_700_000_000_000_000).unwrap()
    }

    #[test]
    fn a_rating_that_names_no_agent_moves_a_limit_only_when_items_are_agents() {
        let item = rating(r#"{"user_id":"u","item_id":"film-7","rating":4}"#);
        assert_eq!(item.subject(SubjectMode::Agent), None);
        assert_eq!(item.subject(SubjectMode::Item).unwrap().as_str(), "film-7");
    }

    #[test]
    fn a_named_agent_is_the_subject_even_when_items_are_agents() {
        let both = rating(r#"{"user_id":"u","agent_id":"a1","item_id":"film-7","score":4}"#);
        assert_eq!(both.subject(SubjectMode::Agent).unwrap().as_str(), "a1");
        assert_eq!(both.subject(SubjectMode::Item).unwrap().as_str(), "a1");
    }

    #[test]
    fn an_item_that_is_no_well_formed_agent_id_moves_no_limit() {
        let item = rating(r#"{"user_id":"u","item_id":"Ärger im Paradies","rating":4}"#);
        assert_eq!(item.subject(SubjectMode::Item), None);
    }
}
