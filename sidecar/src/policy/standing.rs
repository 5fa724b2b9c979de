//! What the policies that price capacity remember of one agent: its quality, its demand, its rate, and
//! the last market that made sense.
//!
//! A rating moves quality, a tick moves demand; neither moves the other's. So mean and variance
//! depend on the ratings alone, however often anybody looked in between.

use serde::{Deserialize, Serialize};
use tower_merit::bucket::Limits;

use super::{
    Asked, Belief, Burst, Drift, Market, Reason, Vote,
    demand::{DEMAND_MAX, Demand},
    estimator::{Estimator, EstimatorConfig, single},
    guard::{GuardConfig, Track},
    price::PRICE_MAX,
};

/// How many numbers [`Standing::observation`] has.
pub const OBSERVATION: usize = 12;

/// Share of the running means of scores that one rating replaces: the recent and the long one.
const RECENT_SHARE: f64 = 0.1;
const LONG_SHARE: f64 = 0.01;

/// Idle time that counts: 30 days, in seconds.
const IDLE_MAX_S: f64 = 2_592_000.0;

/// One agent's standing: [`Standing::BYTES`] bytes in memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    pub(super) estimator: Estimator,
    pub(super) demand: Demand,
    pub(super) track: Track,
    /// The last market that was finite.
    price: f64,
    use_share: f64,
    /// Seconds of ticks since the last rating, and since the beginning.
    idle_s: f64,
    age_s: f64,
    /// Running means of its scores.
    recent: f32,
    long: f32,
}

/// What a call told and what was wrong with it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Heard {
    pub(super) reward: f64,
    pub(super) drift: Option<Drift>,
    pub(super) fault: Option<Reason>,
}

impl Standing {
    /// Bytes of memory; as JSON it is about 850.
    pub const BYTES: usize = size_of::<Self>();

    pub(super) fn new(start: Limits, burst: Burst, config: &EstimatorConfig) -> Self {
        Self {
            estimator: Estimator::new(config),
            demand: Demand::new(start.refill().tokens()),
            track: Track::new(start, burst),
            price: 0.0,
            use_share: 0.0,
            idle_s: 0.0,
            age_s: 0.0,
            recent: single(config.prior_mean),
            long: single(config.prior_mean),
        }
    }

    /// Takes over an operator's limits: what is known of the quality stays, what was known of the
    /// demand is what the operator thinks it is.
    pub(super) fn adopt(&mut self, limits: Limits) {
        self.track.adopt(limits);
        self.demand = Demand::new(limits.refill().tokens());
    }

    /// Learns a rating.
    pub(super) fn hear(&mut self, vote: Vote, market: &Market, config: &EstimatorConfig) -> Heard {
        let mut fault = self.repair(config).or_else(|| self.note(market));
        let mut drift = None;
        let learned =
            self.estimator.learn(vote.score, vote.weight, vote.at_ms, market.tick_ms, config);
        match learned {
            Ok(found) => {
                drift = found;
                self.idle_s = 0.0;
                self.track.at(vote.at_ms, market.tick_ms);
                let toward = |mean: f32, share: f64| {
                    let mean = f64::from(mean);
                    single(mean + share * vote.weight * (vote.score - mean))
                };
                self.recent = toward(self.recent, RECENT_SHARE);
                self.long = toward(self.long, LONG_SHARE);
            }
            Err(reason) => fault = Some(reason),
        }
        let reward = if fault == Some(Reason::Score) { 0.0 } else { vote.score - NEUTRAL };
        Heard { reward, drift, fault }
    }

    /// Takes in what the agent asked for.
    pub(super) fn look(
        &mut self,
        asked: Asked,
        market: &Market,
        config: &EstimatorConfig,
    ) -> Heard {
        let mut fault = self.repair(config).or_else(|| self.note(market));
        let mut reward = 0.0;
        match self.demand.see(asked, tick_seconds(market)) {
            Ok(()) => {
                self.track.passed(asked.seconds, market.tick_ms);
                self.idle_s = (self.idle_s + asked.seconds).min(IDLE_MAX_S);
                self.age_s = (self.age_s + asked.seconds).min(IDLE_MAX_S);
                if asked.seconds > 0.0 {
                    let mean = self.belief(market, config).mean;
                    let served = (asked.admitted / asked.seconds).min(DEMAND_MAX);
                    reward = served * (mean - NEUTRAL - self.price);
                }
            }
            Err(reason) => fault = Some(reason),
        }
        Heard { reward, drift: None, fault }
    }

    /// Returns what is known of the quality now.
    pub(super) fn belief(&self, market: &Market, config: &EstimatorConfig) -> Belief {
        self.estimator.belief_after(self.idle_s / tick_seconds(market), config)
    }

    /// Returns the last price that was finite.
    #[must_use]
    pub fn price(&self) -> f64 {
        self.price
    }

    /// Returns what is known of the agent's quality.
    #[must_use]
    pub fn estimator(&self) -> &Estimator {
        &self.estimator
    }

    /// Returns what is known of the agent's demand.
    #[must_use]
    pub fn demand(&self) -> &Demand {
        &self.demand
    }

    /// Returns the agent's rate and what holds it.
    #[must_use]
    pub fn track(&self) -> &Track {
        &self.track
    }

    /// The same, to freeze, override or let go.
    pub fn track_mut(&mut self) -> &mut Track {
        &mut self.track
    }

    /// Returns the observation of `ppo` (POLICY section 2), each number finite and within about
    /// −4 to 4: (m−3)/2, √v, recent less long mean, ln(1+n)/8, D̂/r up to 4, ln r within its range
    /// (0 to 1), tokens/capacity, share refused, p, use/C up to 4, drift statistic up to 10 as a
    /// tenth of it, ln(1 + age in ticks)/12.
    #[must_use]
    pub fn observation(
        &self,
        market: &Market,
        config: &EstimatorConfig,
        guard: &GuardConfig,
    ) -> [f32; OBSERVATION] {
        let Belief { mean, variance } = self.belief(market, config);
        let rate = self.track.rate();
        let range = (guard.r_max / guard.r_min).ln().max(f64::MIN_POSITIVE);
        let age = self.age_s / tick_seconds(market);
        [
            (mean - NEUTRAL) / 2.0,
            variance.sqrt(),
            f64::from(self.recent) - f64::from(self.long),
            self.estimator.evidence().ln_1p() / 8.0,
            (self.demand.rate() / rate.max(guard.r_min)).min(4.0),
            ((rate.max(guard.r_min) / guard.r_min).ln() / range).min(1.0),
            self.demand.level(),
            self.demand.refused(),
            self.price,
            self.use_share.min(4.0),
            self.estimator.statistic(config).min(10.0) / 10.0,
            age.ln_1p() / 12.0,
        ]
        .map(single)
    }

    /// Notes a market; one that is not finite leaves the last one.
    fn note(&mut self, market: &Market) -> Option<Reason> {
        let sound = |number: f64| number.is_finite() && number >= 0.0;
        if !(sound(market.price) && sound(market.use_share) && market.tick_ms > 0) {
            return Some(Reason::Market);
        }
        // Beyond the largest price nothing changes any more.
        (self.price, self.use_share) = (market.price.min(PRICE_MAX), market.use_share);
        None
    }

    /// Starts again with whatever is not a number. Memory that nobody else writes holds none; a law
    /// must not stop at it all the same.
    fn repair(&mut self, config: &EstimatorConfig) -> Option<Reason> {
        let numbers = [self.price, self.use_share, self.idle_s, self.age_s];
        let means = [self.recent, self.long];
        let sound = numbers.iter().all(|number| number.is_finite())
            && means.iter().all(|mean| mean.is_finite());
        if sound && self.demand.is_sound() && self.track.is_sound() && self.estimator.is_sound() {
            return None;
        }
        let rate = self.track.rate();
        let rate = if self.track.is_sound() { rate } else { 0.0 };
        if !self.estimator.is_sound() {
            self.estimator = Estimator::new(config);
        }
        if !self.demand.is_sound() {
            self.demand = Demand::new(rate);
        }
        self.track.restart(rate);
        (self.price, self.use_share, self.idle_s, self.age_s) = (0.0, 0.0, 0.0, 0.0);
        (self.recent, self.long) = (single(config.prior_mean), single(config.prior_mean));
        Some(Reason::State)
    }
}

/// The score that is worth nothing.
const NEUTRAL: f64 = 3.0;

#[allow(clippy::cast_precision_loss, reason = "a tick is far below 2^53 ms")]
fn tick_seconds(market: &Market) -> f64 {
    market.tick_ms.max(1) as f64 / 1e3
}
