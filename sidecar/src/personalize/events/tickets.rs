//! Tickets: how a browser shows whose scores it may see, as its `EventSource` sends no `Authorization`.
//!
//! 1. A ticket is 256 random bits, known to whom it was issued; what is stored is its SHA-256.
//! 2. It is bound to the viewer and to the end of the token that it was asked for with.
//! 3. It opens one stream, within [`TICKET_LIFE`]: over Redis on any node, taken and deleted in one step.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tower_merit::{RedisStore, store::StoreError};

/// How long a ticket may wait to be used.
pub const TICKET_LIFE: Duration = Duration::from_secs(60);
/// Random bytes of a ticket.
const RANDOM: usize = 32;
/// The most tickets that wait in memory.
const WAITING_MAX: usize = 100_000;
/// What the keys of tickets begin with.
const KEY: &str = "merit:ticket:";

/// Why there is no ticket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TicketError {
    /// The store does not do what it is asked for.
    #[error("ticket store")]
    Store(#[from] StoreError),
    /// Too many wait to be used.
    #[error("{WAITING_MAX} tickets wait to be used")]
    Full,
}

/// Whose scores a stream may tell, and until when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Grant {
    /// The user.
    pub(super) viewer: String,
    /// In Unix seconds.
    pub(super) expires_at: u64,
}

type Waiting = HashMap<[u8; 32], (Grant, Instant)>;

/// Where tickets wait. Clones share them.
#[derive(Clone, Debug)]
pub enum Tickets {
    /// In this process.
    Memory(MemoryTickets),
    /// In Redis, for every node.
    Redis(RedisStore),
}

/// Tickets that only this process knows.
#[derive(Clone, Debug, Default)]
pub struct MemoryTickets {
    waiting: Arc<Mutex<Waiting>>,
}

/// Returns the digest that a ticket is known by.
fn known_by(ticket: &str) -> [u8; 32] {
    let digest = digest(&SHA256, ticket.as_bytes());
    digest.as_ref().try_into().expect("a SHA-256 digest has 32 bytes")
}

fn key(ticket: &str) -> String {
    format!("{KEY}{}", URL_SAFE_NO_PAD.encode(known_by(ticket)))
}

impl Tickets {
    /// Returns tickets that only this process knows.
    #[must_use]
    pub fn memory() -> Self {
        Self::Memory(MemoryTickets::default())
    }

    /// Returns a new ticket for `grant`.
    pub(super) async fn issue(&self, grant: &Grant) -> Result<String, TicketError> {
        let mut random = [0; RANDOM];
        aws_lc_rs::rand::fill(&mut random).expect("the operating system gives random bytes");
        let ticket = URL_SAFE_NO_PAD.encode(random);
        match self {
            Self::Memory(tickets) => {
                let now = Instant::now();
                let mut waiting = tickets.lock();
                if waiting.len() >= WAITING_MAX {
                    waiting.retain(|_, (_, until)| *until > now);
                }
                if waiting.len() >= WAITING_MAX {
                    return Err(TicketError::Full);
                }
                waiting.insert(known_by(&ticket), (grant.clone(), now + TICKET_LIFE));
            }
            Self::Redis(store) => {
                let value = serde_json::to_string(grant).expect("texts and numbers are JSON");
                let new = store.leave(&key(&ticket), &value, TICKET_LIFE).await?;
                assert!(new, "256 random bits are not drawn twice");
            }
        }
        Ok(ticket)
    }

    /// Returns what `ticket` grants, which it does once.
    pub(super) async fn redeem(&self, ticket: &str) -> Result<Option<Grant>, TicketError> {
        match self {
            Self::Memory(tickets) => {
                let found = tickets.lock().remove(&known_by(ticket));
                Ok(found.filter(|(_, until)| *until > Instant::now()).map(|(grant, _)| grant))
            }
            Self::Redis(store) => {
                let found = store.take(&key(ticket)).await?;
                Ok(found.and_then(|text| serde_json::from_str(&text).ok()))
            }
        }
    }
}

impl MemoryTickets {
    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(viewer: &str) -> Grant {
        Grant { viewer: viewer.to_owned(), expires_at: 7 }
    }

    #[tokio::test(start_paused = true)]
    async fn a_ticket_opens_once_within_a_minute_and_for_its_viewer() {
        let tickets = Tickets::memory();
        let (ann, bob) = (grant("ann"), grant("bob"));
        let first = tickets.issue(&ann).await.unwrap();
        let second = tickets.issue(&bob).await.unwrap();
        assert!(first != second && first.len() == 43);
        assert_eq!(tickets.redeem(&second).await.unwrap(), Some(bob));
        assert_eq!(tickets.redeem(&first).await.unwrap(), Some(ann.clone()));
        assert_eq!(tickets.redeem(&first).await.unwrap(), None);
        assert_eq!(tickets.redeem("").await.unwrap(), None);
        let late = tickets.issue(&ann).await.unwrap();
        tokio::time::advance(TICKET_LIFE).await;
        assert_eq!(tickets.redeem(&late).await.unwrap(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn tickets_that_wait_are_bounded_and_the_stale_make_room() {
        let tickets = Tickets::memory();
        let Tickets::Memory(memory) = &tickets else { unreachable!() };
        let until = Instant::now() + TICKET_LIFE;
        for n in 0..WAITING_MAX {
            memory.lock().insert(known_by(&n.to_string()), (grant("ann"), until));
        }
        assert!(matches!(tickets.issue(&grant("bob")).await, Err(TicketError::Full)));
        tokio::time::advance(TICKET_LIFE).await;
        assert!(tickets.issue(&grant("bob")).await.is_ok());
        assert_eq!(memory.lock().len(), 1);
    }
}
