//! The price of capacity: one tuner at a time moves it, the others read it.
//!
//! 1. Who leads holds a lease in the store. It sums what all data-plane nodes admitted since the last
//!    tick, and moves the price by it; two who did so would move it twice as fast.
//! 2. Who takes over begins with the price it finds, and moves it once it has seen a whole tick.
//! 3. When the store does not answer, everybody holds the last price.

use std::{collections::HashMap, time::Duration};

use metrics::{Gauge, gauge};
use tokio::time::Instant;
use tower_merit::store::{Bid, Quote, StoreError, Tune};
use tracing::info;

use crate::policy::{Config, Integrator, Market};

/// How long a lease lasts: at least this, and at least so many ticks.
const TERM_MIN: Duration = Duration::from_secs(3);
const TERM_TICKS: u32 = 3;

/// How long a node that is not told of is remembered.
const FORGOTTEN: Duration = Duration::from_secs(3_600);

/// What each node had admitted when it was last heard of, and when they were asked last.
struct Used {
    nodes: HashMap<String, (u64, Instant)>,
    at: Instant,
}

/// What one tuner knows of the market.
pub(super) struct Trade {
    who: String,
    integrator: Integrator,
    /// Tokens per second that the service can serve.
    capacity: f64,
    tick: Duration,
    leads: bool,
    quote: Option<Quote>,
    /// Absent before the first look. A node that takes nothing for a while is not told of, and comes
    /// back at its old count.
    used: Option<Used>,
    price: Gauge,
    use_share: Gauge,
    leading: Gauge,
}

impl Trade {
    /// Returns a market that nobody moved yet, for the tuner `who`; nothing when `config` needs none.
    pub(super) fn new(config: &Config, who: String) -> Option<Self> {
        let capacity = config.service_capacity.filter(|_| config.knows_a_price())?;
        Some(Self {
            who,
            integrator: config.integrator(),
            capacity,
            tick: Duration::from_millis(config.tick_ms()),
            leads: false,
            quote: None,
            used: None,
            price: gauge!("merit_price"),
            use_share: gauge!("merit_use_share"),
            leading: gauge!("merit_market_leader"),
        })
    }

    /// Goes on by another `config`, at the same price.
    pub(super) fn reconfigure(&mut self, config: &Config) {
        self.integrator = config.integrator();
        self.tick = Duration::from_millis(config.tick_ms());
        if let Some(capacity) = config.service_capacity {
            self.capacity = capacity;
        }
    }

    /// Moves the price, or reads it, and returns the market.
    ///
    /// # Errors
    ///
    /// When the store did not answer; the last market stays.
    pub(super) async fn tick(
        &mut self,
        store: &impl Tune,
        now: Instant,
    ) -> Result<Option<Market>, StoreError> {
        let quote = if self.leads { self.next(store.used().await?, now) } else { None };
        let term = TERM_MIN.max(self.tick * TERM_TICKS);
        let bid = Bid { who: self.who.clone(), term, quote };
        let traded = store.trade(&bid).await?;
        if traded.leads != self.leads {
            info!(leads = traded.leads, "the price of capacity: this tuner's part changed");
            self.leads = traded.leads;
            self.used = None;
        }
        self.leading.set(f64::from(u8::from(self.leads)));
        self.quote = traded.quote.or(self.quote);
        let Some(quote) = self.quote else { return Ok(None) };
        self.price.set(quote.price);
        self.use_share.set(quote.use_share);
        #[allow(clippy::cast_possible_truncation, reason = "a tick is a minute at most")]
        let tick_ms = self.tick.as_millis() as u64;
        Ok(Some(Market { price: quote.price, use_share: quote.use_share, tick_ms }))
    }

    /// Lets somebody else lead at once.
    pub(super) async fn release(&mut self, store: &impl Tune) -> Result<(), StoreError> {
        if !self.leads {
            return Ok(());
        }
        self.leads = false;
        let bid = Bid { who: self.who.clone(), term: Duration::ZERO, quote: None };
        store.trade(&bid).await.map(drop)
    }

    /// Returns the next quote from what the nodes have admitted; nothing from the first look.
    fn next(&mut self, told: Vec<(String, u64)>, now: Instant) -> Option<Quote> {
        let first = self.used.is_none();
        let Used { nodes, at } =
            self.used.get_or_insert_with(|| Used { nodes: HashMap::new(), at: now });
        let seconds = now.saturating_duration_since(*at).as_secs_f64();
        *at = now;
        let mut admitted = 0;
        for (node, count) in told {
            // When a node took its first tokens is not known: it may be new, or have been idle. It
            // counts from here on.
            let before = nodes.insert(node, (count, now)).map_or(count, |(before, _)| before);
            admitted += count.saturating_sub(before);
        }
        nodes.retain(|_, (_, heard)| now.saturating_duration_since(*heard) < FORGOTTEN);
        #[allow(clippy::cast_precision_loss, reason = "tokens of one tick")]
        let use_share = admitted as f64 / seconds / self.capacity;
        if first || !use_share.is_finite() {
            return None;
        }
        let price = self.quote.map_or(0.0, |quote| quote.price);
        Some(Quote { price: self.integrator.next(price, use_share), use_share })
    }
}

#[cfg(test)]
mod tests {
    use tower_merit::store::MemoryStore;

    use super::*;
    use crate::policy::Kind;

    fn trade(who: &str) -> Trade {
        let config =
            Config { kind: Kind::Price, service_capacity: Some(100.0), ..Config::default() };
        Trade::new(&config, who.to_owned()).unwrap()
    }

    fn used(counts: &[(&str, u64)]) -> Vec<(String, u64)> {
        counts.iter().map(|(node, count)| ((*node).to_owned(), *count)).collect()
    }

    #[test]
    fn use_is_what_all_nodes_admitted_since_the_last_look() {
        let mut trade = trade("a");
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(trade.next(used(&[("n1", 1_000)]), at(0)), None, "nobody knows since when");
        // 200 in 2 s of 100/s; n2 was not heard of before, and counts from here on.
        let quote = trade.next(used(&[("n1", 1_200), ("n2", 1_000_080)]), at(2)).unwrap();
        assert_eq!(quote.use_share, 1.0);
        assert!((quote.price - 0.25 * 0.02).abs() < 1e-12);
        // n1 is gone, n2 goes on at twice the capacity.
        trade.quote = Some(quote);
        let quote = trade.next(used(&[("n2", 1_000_280)]), at(3)).unwrap();
        assert_eq!(quote.use_share, 2.0);
        assert!((quote.price - (0.005 + 0.25)).abs() < 1e-12, "an error of one capacity at most");
        // Two looks at one instant say nothing.
        assert_eq!(trade.next(used(&[("n2", 1_000_290)]), at(3)), None);
        // n1 was idle, and is told of again at the count it had.
        let quote = trade.next(used(&[("n1", 1_210), ("n2", 1_000_290)]), at(4)).unwrap();
        assert_eq!(quote.use_share, 0.1);
    }

    #[tokio::test]
    async fn one_of_two_moves_the_price_and_the_other_reads_it() {
        let store = MemoryStore::new();
        let (mut first, mut second) = (trade("first"), trade("second"));
        let start = Instant::now();
        for second_of in 0..3 {
            let now = start + Duration::from_secs(second_of);
            first.tick(&store, now).await.unwrap();
            let market = second.tick(&store, now).await.unwrap();
            assert!(first.leads && !second.leads);
            assert_eq!(market.map(|market| market.price), first.quote.map(|quote| quote.price));
        }
        assert!(first.quote.is_some());
        first.release(&store).await.unwrap();
        let price = first.quote.unwrap().price;
        second.tick(&store, start + Duration::from_secs(3)).await.unwrap();
        assert!(second.leads);
        assert_eq!(second.quote.unwrap().price, price, "who takes over goes on from there");
    }
}
