//! A price on capacity: each agent gets what it wants as far as its quality is worth the price, and
//! the price follows the service's use.
//!
//! Maximising Σ served·(q − 3) within a capacity is a linear programme whose multiplier is the price
//! of a token (POLICY section 2; bandits with knapsacks: Badanidiyuru, Kleinberg & Slivkins 2013);
//! with it, every agent is decided on its own, in constant time. The sigmoid softens the knife's
//! edge at q − 3 = p by what noise there is; c·√v is the optimism that makes an unknown agent worth
//! a try (Auer, Cesa-Bianchi & Fischer 2002).

use tower_merit::bucket::Limits;

use super::{
    Asked, Belief, Burst, Decision, EstimatorConfig, GuardConfig, Law, Market, Mode, Vote,
    standing::{Heard, Standing},
};

/// The largest price, in points of score above 3: nobody is worth 3, so that it need not rise further
/// while use stays above its target, nor come back from there.
pub const PRICE_MAX: f64 = 3.0;

/// The largest distance of use from its target that one update believes, as a share of capacity.
const ERROR_MAX: f64 = 1.0;

/// Beyond this many softnesses from the price the sigmoid is 0 or 1, as in the prototype.
const SIGMOID_MAX: f64 = 30.0;

/// The constants of the base law.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BaseLaw {
    /// c: how much of a standard deviation an agent is given on credit; 0.5.
    pub optimism: f64,
    /// τ: how soft the price's edge is, in points of score; 0.08.
    pub softness: f64,
    /// What a rate is above the demand, which grows before its estimate does; 1.05.
    pub headroom: f64,
    /// What a rate is above that, so that a burst is not refused: standard deviations of a second's
    /// arrivals, if they come as a Poisson process; 0.7. The rarer the requests of an agent, the
    /// more of them come in bursts.
    pub spare: f64,
    /// The least rate, tokens per second.
    pub r_min: f64,
    /// The largest rate, tokens per second.
    pub r_max: f64,
}

impl BaseLaw {
    /// Returns the shipped constants for rates from `r_min` to `r_max`: chosen in the simulated world, on
    /// the seeds that docs/policy/price.md names.
    #[must_use]
    pub fn within(r_min: f64, r_max: f64) -> Self {
        Self { optimism: 0.5, softness: 0.08, headroom: 1.05, spare: 0.7, r_min, r_max }
    }

    /// Returns r = (1.05·D̂ + 0.7·√D̂)·σ((m + c·√v − 3 − p)/τ), within `r_min` to `r_max`, in tokens per
    /// second: the base law of the module's head, with √D̂ for the deviation of a Poisson count (D̂ in
    /// tokens, over one second). What is not a number gives what is not a number.
    #[must_use]
    pub fn rate(&self, belief: Belief, demand: f64, price: f64) -> f64 {
        let worth = belief.mean + self.optimism * belief.variance.sqrt() - 3.0 - price;
        let edge = (worth / self.softness).clamp(-SIGMOID_MAX, SIGMOID_MAX);
        let share = 1.0 / (1.0 + (-edge).exp());
        ((self.headroom * demand + self.spare * demand.sqrt()) * share)
            .clamp(self.r_min, self.r_max)
    }
}

/// The constants of the price.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Integrator {
    /// η: points of score that the price moves in a tick when use is one capacity off; 0.25.
    pub gain: f64,
    /// The share of capacity that use is led to; 0.98.
    pub target: f64,
}

impl Default for Integrator {
    fn default() -> Self {
        Self { gain: 0.25, target: 0.98 }
    }
}

impl Integrator {
    /// Returns the price after a tick: max(0, p + η·(use/C − 0.98)), at most [`PRICE_MAX`].
    ///
    /// A use that is not a number holds the price; a price that is none starts again at 0.
    #[must_use]
    pub fn next(&self, price: f64, use_share: f64) -> f64 {
        let price = if price.is_finite() { price } else { 0.0 };
        let error = (use_share - self.target).clamp(-ERROR_MAX, ERROR_MAX);
        let moved = if error.is_nan() { price } else { price + self.gain * error };
        moved.clamp(0.0, PRICE_MAX)
    }
}

/// What `price` is tuned by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PriceConfig {
    /// The base law.
    pub base: BaseLaw,
    /// What quality is learned by.
    pub estimator: EstimatorConfig,
    /// The guardrails.
    pub guard: GuardConfig,
    /// Seconds of refill that a bucket holds; as configured for the bucket when absent.
    pub burst_seconds: Option<f64>,
}

/// The base law as a policy.
#[derive(Clone, Debug)]
pub struct Price {
    pub(super) config: PriceConfig,
}

impl Price {
    /// Returns the law.
    #[must_use]
    pub fn new(config: PriceConfig) -> Self {
        Self { config }
    }

    /// Returns what it is tuned by.
    #[must_use]
    pub fn config(&self) -> &PriceConfig {
        &self.config
    }

    /// Returns what is known of an agent's quality now.
    #[must_use]
    pub fn belief(&self, standing: &Standing, market: &Market) -> Belief {
        standing.belief(market, &self.config.estimator)
    }

    pub(super) fn start(&self, start: Limits) -> Standing {
        let burst = self.config.burst_seconds.map_or(Burst::of(start), Burst::of_seconds);
        Standing::new(start, burst, &self.config.estimator)
    }

    /// Returns what the base law asks for, in tokens per second.
    pub(super) fn base(&self, standing: &Standing, market: &Market) -> f64 {
        let belief = self.belief(standing, market);
        self.config.base.rate(belief, standing.demand.rate(), standing.price())
    }

    fn decide(&self, standing: &mut Standing, heard: Heard, market: &Market) -> Decision {
        let base = self.base(standing, market);
        // It is the base law: shadow mode and kill switch have nothing to take away.
        let mode = match self.config.guard.mode {
            Mode::Frozen => Mode::Frozen,
            Mode::Live | Mode::Shadow | Mode::Base => Mode::Live,
        };
        let guard = GuardConfig { mode, ..self.config.guard };
        let held = guard.apply(&mut standing.track, base, base, standing.estimator.evidence());
        Decision {
            rate: standing.track.rate(),
            base,
            residual: 0.0,
            reward: heard.reward,
            drift: heard.drift,
            propensity: 1.0,
            held: heard.fault.or(held),
        }
    }
}

impl Law for Price {
    type State = Standing;

    fn begin(&self, start: Limits) -> Standing {
        self.start(start)
    }

    fn adopt(&self, state: &mut Standing, limits: Limits) {
        state.adopt(limits);
    }

    fn vote(&self, state: &mut Standing, vote: Vote, market: &Market) -> Decision {
        let heard = state.hear(vote, market, &self.config.estimator);
        self.decide(state, heard, market)
    }

    fn tick(&self, state: &mut Standing, asked: Asked, market: &Market) -> Decision {
        let heard = state.look(asked, market, &self.config.estimator);
        self.decide(state, heard, market)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAW: BaseLaw = BaseLaw {
        optimism: 0.3,
        softness: 0.08,
        headroom: 1.15,
        spare: 0.0,
        r_min: 0.5,
        r_max: 40.0,
    };

    fn rate(mean: f64, variance: f64, demand: f64, price: f64) -> f64 {
        LAW.rate(Belief { mean, variance }, demand, price)
    }

    #[test]
    fn at_the_price_an_agent_gets_half_of_what_it_wants_and_headroom() {
        // m + 0.3·√0.04 − 3 = 0.56 = p: σ(0) = ½, r = 1.15·10/2.
        assert!((rate(3.5, 0.04, 10.0, 0.56) - 5.75).abs() < 1e-9);
        // 0.08 above: σ(1) = 0.731058578630005.
        assert!((rate(3.58, 0.04, 10.0, 0.56) - 11.5 * 0.731_058_578_630_005).abs() < 1e-9);
        // 0.16 below: σ(−2) = 0.119202922022118.
        assert!((rate(3.34, 0.04, 10.0, 0.56) - 11.5 * 0.119_202_922_022_118).abs() < 1e-9);
    }

    #[test]
    fn whoever_asks_rarely_has_more_to_spare() {
        let law = BaseLaw::within(0.5, 4000.0);
        // Far above the price σ is 1: 1.05·D̂ + 0.7·√D̂.
        let rate = |demand| law.rate(Belief { mean: 4.9, variance: 0.01 }, demand, 0.0);
        assert!((rate(4.0) - 5.6).abs() < 1e-6 && (rate(100.0) - 112.0).abs() < 1e-4);
        assert!((rate(2500.0) / 2500.0 - 1.064).abs() < 1e-6);
    }

    #[test]
    fn the_rate_stays_within_its_range() {
        assert_eq!(rate(5.0, 0.01, 100.0, 0.0), 40.0);
        assert_eq!(rate(1.0, 0.01, 100.0, 0.0), 0.5);
        assert_eq!(rate(5.0, 0.01, 0.0, 0.0), 0.5);
    }

    #[test]
    fn an_unknown_agent_gets_more_than_a_known_one_of_the_same_mean() {
        assert!(rate(3.5, 0.6, 10.0, 0.6) > 2.0 * rate(3.5, 0.01, 10.0, 0.6));
    }

    #[test]
    fn the_price_follows_use() {
        let price = Integrator::default();
        assert!((price.next(0.5, 1.18) - 0.55).abs() < 1e-12);
        assert!((price.next(0.5, 0.58) - 0.4).abs() < 1e-12);
        assert_eq!(price.next(0.05, 0.0), 0.0, "never below 0");
        assert_eq!(price.next(0.5, 1e6), 0.75, "a spike of use counts as one capacity");
        assert_eq!(price.next(2.9, 1e6), PRICE_MAX);
        assert_eq!(price.next(0.5, f64::NAN), 0.5);
        assert_eq!(price.next(f64::NAN, 0.98), 0.0);
    }

    #[test]
    fn price_and_base_law_together_lead_use_to_its_target() {
        // 50 agents, each wanting 10, of quality 2.5 to 5; capacity 200 of the 500 they want.
        let price = Integrator::default();
        let (mut p, mut use_share) = (0.0, 0.0);
        for _ in 0..2_000 {
            let served: f64 =
                (0..50).map(|n| rate(2.5 + f64::from(n) * 0.05, 0.01, 10.0, p).min(10.0)).sum();
            use_share = served / 200.0;
            p = price.next(p, use_share);
        }
        assert!((use_share - 0.98).abs() < 1e-6, "{use_share}");
        // With a hard edge it would be 1.05, where the best 19.6 of them lie above; the softness lets
        // some below the price through.
        assert!((1.05..1.2).contains(&p), "{p}");
    }
}
