//! The market: one of the tuners sets the price of capacity, and all of them read it.
//!
//! Two who integrate the same use would move the price twice as fast, so it is set under a lease:
//!
//! 1. Whoever bids while nobody holds the lease, or after its term ended, takes it.
//! 2. A quote is posted by the holder only: by one whose earlier bid took or kept the lease, and whom
//!    nobody has replaced since, even if the term ended meanwhile. Whoever takes the lease is told the
//!    quote in force, goes on from there and posts with the next bid.
//! 3. A bid of anybody else changes nothing.
//! 4. A term of zero gives the lease back, after the quote was posted.
//!
//! The quote outlives the lease: while nobody leads, everybody keeps to the last one.

use std::time::Duration;

use tokio::time::Instant;

use super::StoreError;

/// The longest lease of the market: 1 h. A longer term is cut down to it.
pub const BID_TERM_MAX: Duration = Duration::from_secs(3600);

/// Asks for the lease of the market.
#[derive(Clone, Debug, PartialEq)]
pub struct Bid {
    /// Who bids: not empty, and unique to one running tuner.
    pub who: String,
    /// How long the lease is to last from now on, in whole milliseconds, rounded up; at most
    /// [`BID_TERM_MAX`]. Zero gives it back at once.
    pub term: Duration,
    /// The quote to post, if `who` holds the lease already.
    pub quote: Option<Quote>,
}

impl Bid {
    /// Returns the term in milliseconds.
    pub(super) fn term_ms(&self) -> u64 {
        let term = self.term.min(BID_TERM_MAX);
        u64::try_from(term.as_nanos().div_ceil(1_000_000)).expect("at most an hour")
    }

    /// Returns an error when the quote is none.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        debug_assert!(!self.who.is_empty(), "nobody bids");
        match self.quote {
            Some(quote) if !quote.is_sound() => Err(StoreError::Quote(quote)),
            _ => Ok(()),
        }
    }
}

/// What capacity costs, and how much of it is in use. Both are finite and at least 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quote {
    /// The price, in units of quality.
    pub price: f64,
    /// Use of the service as a share of its capacity: 1 is all of it, and more is possible.
    pub use_share: f64,
}

impl Quote {
    /// Returns true when both numbers are finite and at least 0.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        [self.price, self.use_share].iter().all(|number| number.is_finite() && *number >= 0.0)
    }
}

/// What became of a [`Bid`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Traded {
    /// True when the bidder holds the lease now.
    pub leads: bool,
    /// The quote in force; `None` when none was ever posted.
    pub quote: Option<Quote>,
}

/// The market of a store in this process.
#[derive(Default)]
pub(super) struct Market {
    /// Who holds the lease, and until when.
    holder: Option<(String, Instant)>,
    quote: Option<Quote>,
}

impl Market {
    /// Decides a bid that was checked.
    pub(super) fn trade(&mut self, bid: &Bid, now: Instant) -> Traded {
        let mine = self.holder.as_ref().is_some_and(|(who, _)| *who == bid.who);
        let free = self.holder.as_ref().is_none_or(|(_, until)| *until <= now);
        let term = Duration::from_millis(bid.term_ms());
        if mine {
            self.quote = bid.quote.or(self.quote);
        }
        let leads = (mine || free) && !term.is_zero();
        if leads {
            self.holder = Some((bid.who.clone(), now + term));
        } else if mine {
            self.holder = None;
        }
        Traded { leads, quote: self.quote }
    }
}
