//! The agents that are rated most, by name: the only metrics with an agent as label, and few of them.
//!
//! 1. Four times as many agents are counted as are shown. A newcomer to a full table takes the place of
//!    the least one by chance, the sooner the more it is rated, and inherits its count: Randomized Admission
//!    Policy (Ben Basat, Einziger, Friedman and Kassner, INFOCOM 2017). Agents that are hardly rated cost
//!    a look and a draw, and whoever is rated often gets in and stays.
//! 2. Counts halve every [`HALF`], so that the table is about now; who is not rated any more leaves it.
//! 3. Series must end when their agent leaves, which gauges of the recorder cannot: the exposition is
//!    written here.

use std::{
    collections::HashMap,
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tower_merit::AgentId;

/// How many agents are shown at most.
pub const BUSIEST_MAX: u16 = 1_000;

/// In which time a count halves.
const HALF: Duration = Duration::from_secs(300);

/// How often counts are brought up to date at most.
const DECAY: Duration = Duration::from_secs(10);

/// Who counts less than this is not shown any more: one rating an hour ago.
const FAINT: f64 = 1.0 / 4096.0;

/// How many are counted for each that is shown.
const ROOM: usize = 4;

/// The agents that are rated most. Clones are the same table.
#[derive(Clone, Debug)]
pub struct Busiest(Arc<Mutex<Table>>);

#[derive(Debug)]
struct Table {
    shown: usize,
    places: HashMap<AgentId, Place, foldhash::fast::RandomState>,
    /// No place counts less than this.
    least: f64,
    decayed: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    /// What it is ranked by: its ratings, and what it inherited.
    rank: f64,
    ratings: f64,
    rewards: f64,
    refill_rate: f64,
}

impl Busiest {
    /// Returns a table that shows `shown` agents, at most [`BUSIEST_MAX`].
    #[must_use]
    pub fn new(shown: u16) -> Self {
        Self(Arc::new(Mutex::new(Table {
            shown: shown.min(BUSIEST_MAX).into(),
            places: HashMap::default(),
            least: 0.0,
            decayed: Instant::now(),
        })))
    }

    /// Notes that `ratings` with the sum `rewards` gave the agent its refill rate, in tokens per second.
    pub(super) fn rated(&self, agent: &AgentId, ratings: u64, rewards: f64, refill_rate: f64) {
        #[allow(clippy::cast_precision_loss, reason = "a batch has thousands at most")]
        let ratings = ratings as f64;
        let mut table = self.table();
        if ratings <= 0.0 {
            // Repeats only: nothing that ranks anybody.
            if let Some(place) = table.places.get_mut(agent) {
                place.refill_rate = refill_rate;
            }
            return;
        }
        if let Some(place) = table.places.get_mut(agent) {
            place.rank += ratings;
            place.ratings += ratings;
            place.rewards += rewards;
            place.refill_rate = refill_rate;
            return;
        }
        let mut place = Place { rank: ratings, ratings, rewards, refill_rate };
        if table.places.len() >= ROOM * table.shown {
            if fastrand::f64() * (table.least + ratings) >= ratings {
                return;
            }
            let Some((agent, rank)) = table.last() else { return };
            table.places.remove(&agent);
            table.least = rank;
            place.rank += rank;
        }
        table.places.insert(agent.clone(), place);
    }

    /// Notes that the agent has another refill rate, in tokens per second, without a rating.
    pub(super) fn moved(&self, agent: &AgentId, refill_rate: f64) {
        if let Some(place) = self.table().places.get_mut(agent) {
            place.refill_rate = refill_rate;
        }
    }

    /// Forgets everybody: they may be another tuner's now.
    pub(super) fn forget_all(&self) {
        let mut table = self.table();
        table.places.clear();
        table.least = 0.0;
    }

    /// Lets counts fade until `now`.
    pub(super) fn fade(&self, now: Instant) {
        let mut table = self.table();
        let passed = now.saturating_duration_since(table.decayed);
        if passed < DECAY {
            return;
        }
        table.decayed = now;
        let factor = (-passed.div_duration_f64(HALF)).exp2();
        table.least *= factor;
        table.places.retain(|_, place| {
            place.rank *= factor;
            place.ratings *= factor;
            place.rewards *= factor;
            place.rank >= FAINT
        });
        if table.places.len() < ROOM * table.shown {
            table.least = 0.0;
        }
    }

    /// Appends two series for each agent shown, in the Prometheus text format 0.0.4.
    pub fn render(&self, text: &mut String) {
        let shown = self.shown();
        let mut family = |name: &str, help: &str, value: fn(&Place) -> f64| {
            if shown.is_empty() {
                return;
            }
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
            for (agent, place) in &shown {
                // Nothing that an agent's name may hold needs an escape.
                let _ = writeln!(text, "{name}{{agent=\"{agent}\"}} {}", value(place));
            }
            text.push('\n');
        };
        family(
            "merit_agent_refill_rate",
            "Refill rate in force, in tokens per second, of each of the agents rated most lately",
            |place| place.refill_rate,
        );
        family(
            "merit_agent_reward",
            "Mean reward of the latest ratings of each of the agents rated most lately",
            |place| if place.ratings > 0.0 { place.rewards / place.ratings } else { 0.0 },
        );
    }

    /// Returns the agents shown, in the order of their names: the lock is not held while they are written.
    fn shown(&self) -> Vec<(AgentId, Place)> {
        let (mut all, shown) = {
            let table = self.table();
            let places = table.places.iter().map(|(agent, place)| (agent.clone(), *place));
            (places.collect::<Vec<_>>(), table.shown)
        };
        // By what they were rated since they came, not by what they inherited: a newcomer is not among the first.
        all.sort_by(|(a, left), (b, right)| {
            right.ratings.total_cmp(&left.ratings).then_with(|| a.cmp(b))
        });
        all.truncate(shown);
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        all
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // No change of the table can be left half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Returns who counts least.
    fn last(&self) -> Option<(AgentId, f64)> {
        let ranks = self.places.iter().map(|(agent, place)| (agent, place.rank));
        let order = |(a, left): &(&AgentId, f64), (b, right): &(&AgentId, f64)| {
            left.total_cmp(right).then_with(|| a.cmp(b))
        };
        let (agent, rank) = ranks.min_by(order)?;
        Some((agent.clone(), rank))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(name: impl std::fmt::Display) -> AgentId {
        name.to_string().parse().unwrap()
    }

    fn names(busiest: &Busiest) -> Vec<String> {
        busiest.shown().iter().map(|(agent, _)| agent.to_string()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_rated_most_is_shown_whatever_the_tail() {
        fastrand::seed(7);
        let busiest = Busiest::new(5);
        // Each of the heavy ones has a tenth of the ratings, and ten thousand others share one half, rated once each.
        for round in 0..100 {
            for other in 0..100 {
                busiest.rated(&agent(format_args!("other-{}", round * 100 + other)), 1, 0.0, 1.0);
            }
            for heavy in 0..5 {
                busiest.rated(&agent(format_args!("heavy-{heavy}")), 20, 10.0, 7.0);
            }
        }
        assert_eq!(names(&busiest), ["heavy-0", "heavy-1", "heavy-2", "heavy-3", "heavy-4"]);
        assert!(busiest.table().places.len() <= 20);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_not_rated_any_more_leaves() {
        let busiest = Busiest::new(1);
        busiest.rated(&agent("old"), 1_000, 0.0, 1.0);
        tokio::time::advance(4 * HALF).await;
        busiest.fade(Instant::now());
        busiest.rated(&agent("new"), 100, 0.0, 1.0);
        assert_eq!(names(&busiest), ["new"]);
        tokio::time::advance(30 * HALF).await;
        busiest.fade(Instant::now());
        assert_eq!(names(&busiest), [""; 0]);
        assert_eq!(busiest.table().least, 0.0);
        busiest.rated(&agent("new"), 1, 0.0, 1.0);
        busiest.forget_all();
        assert_eq!(names(&busiest), [""; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_text_is_prometheus_text() {
        let busiest = Busiest::new(2);
        let mut text = String::new();
        busiest.render(&mut text);
        assert_eq!(text, "");
        busiest.rated(&agent("urn:a@eu"), 2, 1.0, 2.5);
        busiest.rated(&agent("b"), 4, -2.0, 0.25);
        busiest.rated(&agent("c"), 1, 1.0, 9.0);
        busiest.rated(&agent("repeats"), 0, 0.0, 9.0);
        busiest.rated(&agent("b"), 0, 0.0, 0.125);
        busiest.moved(&agent("b"), 0.5);
        busiest.moved(&agent("unknown"), 9.0);
        busiest.render(&mut text);
        let expected = r#"# HELP merit_agent_refill_rate Refill rate in force, in tokens per second, of each of the agents rated most lately
# TYPE merit_agent_refill_rate gauge
merit_agent_refill_rate{agent="b"} 0.5
merit_agent_refill_rate{agent="urn:a@eu"} 2.5

# HELP merit_agent_reward Mean reward of the latest ratings of each of the agents rated most lately
# TYPE merit_agent_reward gauge
merit_agent_reward{agent="b"} -0.5
merit_agent_reward{agent="urn:a@eu"} 0.5

"#;
        assert_eq!(text, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_table_that_shows_nobody_holds_nobody() {
        let busiest = Busiest::new(0);
        busiest.rated(&agent("a"), 1, 0.0, 1.0);
        assert!(busiest.table().places.is_empty());
    }
}
