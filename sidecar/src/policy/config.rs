//! `[policy]`: which rule turns ratings into limits, and its numbers.

use std::{path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};
use tower_merit::bucket::REFILL_RATE_MAX;

use super::{
    AdditiveConfig, BaseLaw, EstimatorConfig, EstimatorKind, GuardConfig, Integrator, Mode,
    PriceConfig, Residual, ppo, residual,
};

/// The policies there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum Kind {
    /// r ← clamp(r + α·(score − 3)).
    #[default]
    Additive,
    /// What an agent wants, as far as its quality is worth the price of capacity.
    Price,
    /// `price`, with Thompson sampling over multipliers of its rate.
    Bandit,
    /// `price`, with a residual that learns.
    Ppo,
}

impl TryFrom<String> for Kind {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        match name.as_str() {
            "additive" => Ok(Self::Additive),
            "price" => Ok(Self::Price),
            "bandit" => Ok(Self::Bandit),
            "ppo" => Ok(Self::Ppo),
            _ => Err("must be `additive`, `price`, `bandit` or `ppo`".to_owned()),
        }
    }
}

/// `[policy]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Which policy: `additive`, `price`, `bandit` or `ppo`; default `ppo` where `service_capacity` is
    /// named, else `additive`.
    pub kind: Kind,
    /// `additive`: tokens per second that one point of score above 3 is worth; default 0.1: a steady
    /// stream of fives takes an agent from 20 to 40 in a hundred ratings.
    pub alpha: f64,
    /// Least refill rate, tokens per second; default 0.5, so that nobody starves.
    pub r_min: f64,
    /// Largest refill rate, tokens per second; default 40.
    pub r_max: f64,
    /// Seconds of refill that a bucket holds; default: the bucket's configured capacity ÷ rate.
    pub burst_seconds: Option<f64>,
    /// Requests per second that the service can serve; needed by all but `additive`.
    pub service_capacity: Option<f64>,
    /// How often prices and idle agents are looked at, and the time in which a rate moves by at most
    /// a step: 100ms to 60s; default 1s. `additive` does not use it, nor what follows.
    pub tick: Option<String>,
    /// The largest change of a rate in a tick, as a share of it; default 0.25.
    pub step: f64,
    /// Ratings, by weight, before an agent's first move; default 1.
    pub evidence_min: f64,
    /// `live`, `shadow` (decide and log, apply the base law), `base` (the kill switch: only the base
    /// law) or `frozen` (no rate moves); default live, of `ppo` shadow.
    pub mode: Mode,
    /// How quality is learned: `changepoint` or `kalman`; default changepoint, which notices a change
    /// of quality in a few ratings.
    pub estimator: EstimatorKind,
    /// Chance of a change of quality in a tick; default 0.001.
    pub hazard: f64,
    /// Standard deviations that an agent is given on credit while little is known; default 0.5.
    pub optimism: f64,
    /// How soft the price's edge is, in points of score; default 0.08.
    pub softness: f64,
    /// Points of score that the price moves in a tick when use is one capacity off; default 0.25.
    pub price_gain: f64,
    /// Whether a rater counts less the further its ratings lie from everybody else's; default true.
    /// `additive` believes everybody.
    pub trust: bool,
    /// What a rating without a receipt weighs where receipts are preferred, 0 to 1; default 0.1.
    pub unproved_weight: f64,
    /// The checkpoint of `ppo`, on a volume that all workers share: one of them writes it, all load it.
    /// Absent: what is learned ends with the process, and it begins with the shipped one.
    pub checkpoint: Option<PathBuf>,
    /// Where every decision is logged, with how likely it was; absent: nowhere.
    pub decision_log: Option<PathBuf>,
    /// What the chance of `bandit` and `ppo` starts from; default 1.
    pub seed: u64,
    /// How `ppo` acts and learns.
    pub ppo: ppo::Config,
}

/// Slack of the step, tokens per second: lets a rate near 0 move.
const STEP_SLACK: f64 = 0.05;

/// A tick when none is configured, in milliseconds.
const TICK_MS: u64 = 1_000;

impl Default for Config {
    fn default() -> Self {
        let estimator = EstimatorConfig::default();
        let (r_min, r_max) = (0.5, 40.0);
        let base = BaseLaw::within(r_min, r_max);
        Self {
            kind: Kind::Additive,
            alpha: 0.1,
            r_min,
            r_max,
            burst_seconds: None,
            service_capacity: None,
            tick: None,
            step: 0.25,
            evidence_min: 1.0,
            mode: Mode::Live,
            estimator: estimator.kind,
            hazard: estimator.hazard,
            optimism: base.optimism,
            softness: base.softness,
            price_gain: Integrator::default().gain,
            trust: true,
            unproved_weight: 0.1,
            checkpoint: None,
            decision_log: None,
            seed: 1,
            ppo: ppo::Config::default(),
        }
    }
}

/// Returns the mode that `ppo` ships with: in shadow, as its residual misses the bar that it has to pass
/// before it decides (docs/policy/ppo.md has the figures).
#[must_use]
pub fn shipped_mode() -> Mode {
    Mode::Shadow
}

impl Kind {
    /// Returns the mode that a policy of this kind ships with.
    #[must_use]
    pub fn shipped_mode(self) -> Mode {
        if self == Self::Ppo { shipped_mode() } else { Mode::default() }
    }

    /// Returns whether it goes by what agents ask for and what capacity costs, and by time: ratings alone are not
    /// enough to be what a tuner makes of it.
    #[must_use]
    pub fn knows_a_price(self) -> bool {
        self != Self::Additive
    }
}

impl Config {
    /// Decides what `is_named` says that nobody decided. Where the service's capacity is known, the policy
    /// is `ppo`, else `additive`, which needs to know nothing; the mode of `ppo` is
    /// [`shipped_mode`].
    pub fn fill_in(&mut self, is_named: impl Fn(&str) -> bool) {
        if !is_named("kind") && self.service_capacity.is_some() {
            self.kind = Kind::Ppo;
        }
        if !is_named("mode") {
            self.mode = self.kind.shipped_mode();
        }
    }

    /// Takes another kind; a mode that is the one its kind ships with goes with it, any other was chosen and stays.
    pub fn become_kind(&mut self, kind: Kind) {
        if self.mode == self.kind.shipped_mode() {
            self.mode = kind.shipped_mode();
        }
        self.kind = kind;
    }

    /// Appends every fault, each with its full path.
    pub fn validate(&self, path: &str, faults: &mut Vec<String>) {
        #[allow(clippy::cast_precision_loss, reason = "9 × 10^6 is exact in f64")]
        let most = REFILL_RATE_MAX as f64;
        let mut range = |name: &str, value: f64, low: f64, high: f64| {
            if !(low..=high).contains(&value) {
                faults.push(format!("{path}.{name}: must be {low} to {high}, is {value}"));
            }
        };
        range("alpha", self.alpha, 0.000_001, 1_000.0);
        range("r_min", self.r_min, 0.001, most);
        range("r_max", self.r_max, 0.001, most);
        if let Some(seconds) = self.burst_seconds {
            range("burst_seconds", seconds, 0.001, 86_400.0);
        }
        if let Some(capacity) = self.service_capacity {
            range("service_capacity", capacity, 0.001, 1e12);
        }
        range("step", self.step, 0.001, 1.0);
        range("evidence_min", self.evidence_min, 0.0, 1e6);
        range("hazard", self.hazard, 0.0, 0.1);
        range("optimism", self.optimism, 0.0, 10.0);
        range("softness", self.softness, 0.001, 10.0);
        range("price_gain", self.price_gain, 0.000_1, 10.0);
        range("unproved_weight", self.unproved_weight, 0.0, 1.0);
        self.ppo.validate(&format!("{path}.ppo"), faults);
        if self.r_min > self.r_max {
            let (low, high) = (self.r_min, self.r_max);
            faults.push(format!("{path}.r_min: must be at most {path}.r_max ({high}), is {low}"));
        }
        if let Some(tick) = self.tick.as_deref().filter(|tick| parse_tick(tick).is_none()) {
            faults.push(format!("{path}.tick: must be 100ms to 60s, like `1s`, is `{tick}`"));
        }
        if self.kind != Kind::Additive && self.service_capacity.is_none() {
            faults.push(format!(
                "{path}.service_capacity: not set, and policies that price capacity need it: name \
                 the requests per second that the service can serve, or use `additive`"
            ));
        }
    }

    /// Returns a name of this configuration: 16 hexadecimal digits, the same for the same numbers.
    #[must_use]
    pub fn version(&self) -> String {
        let text = serde_json::to_string(self).expect("plain data");
        format!("{:016x}", super::rater_of(&text, 0))
    }

    /// Returns the length of a tick, in milliseconds.
    #[must_use]
    pub fn tick_ms(&self) -> u64 {
        self.tick.as_deref().and_then(parse_tick).unwrap_or(TICK_MS)
    }

    /// Returns true when the policy goes by a price of capacity.
    #[must_use]
    pub fn knows_a_price(&self) -> bool {
        self.kind.knows_a_price() && self.service_capacity.is_some()
    }

    /// Returns how the price follows use.
    #[must_use]
    pub fn integrator(&self) -> Integrator {
        Integrator { gain: self.price_gain, ..Integrator::default() }
    }

    pub(super) fn additive(&self) -> AdditiveConfig {
        let Self { alpha, r_min, r_max, burst_seconds, .. } = *self;
        AdditiveConfig { alpha, r_min, r_max, burst_seconds }
    }

    /// Returns what the base law, its estimator and its guardrails are tuned by.
    #[must_use]
    pub fn price(&self) -> PriceConfig {
        let Self { r_min, r_max, burst_seconds, step, evidence_min, mode, .. } = *self;
        let base = BaseLaw {
            optimism: self.optimism,
            softness: self.softness,
            ..BaseLaw::within(r_min, r_max)
        };
        let estimator =
            EstimatorConfig { hazard: self.hazard, ..EstimatorConfig::of(self.estimator) };
        let guard = GuardConfig { r_min, r_max, step, slack: STEP_SLACK, evidence_min, mode };
        PriceConfig { base, estimator, guard, burst_seconds }
    }

    /// Returns the learner that `ppo` starts from when nobody has learned anything here yet: the shipped
    /// one where its shape is the configured one, else one that has seen nothing.
    #[must_use]
    pub fn beginner(&self) -> ppo::Learner<ppo::Gaussian> {
        residual::beginner(&self.ppo, self.seed)
    }

    /// Returns the law `ppo` as it begins: acting by [`beginner`](Self::beginner).
    #[must_use]
    pub fn residual(&self) -> Residual {
        let learner = self.beginner();
        let network = Arc::new(learner.network().clone());
        Residual::new(self.price(), self.seed, network, learner.updates())
            .exploring(self.ppo.explore, self.ppo.learn)
    }
}

/// Returns the milliseconds of a tick as configuration writes it: whole `ms`, `s` or `m`.
fn parse_tick(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        _ => return None,
    };
    let tick_ms = number.parse::<u64>().ok()?.checked_mul(unit_ms)?;
    (100..=60_000).contains(&tick_ms).then_some(tick_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(config: &Config) -> Vec<String> {
        let mut faults = Vec::new();
        config.validate("policy", &mut faults);
        faults
    }

    #[test]
    fn policies_go_by_their_names() {
        let kind = |name: &str| Kind::try_from(name.to_owned());
        assert_eq!(kind("price"), Ok(Kind::Price));
        assert_eq!(kind("bandit"), Ok(Kind::Bandit));
        assert_eq!(kind("ppo"), Ok(Kind::Ppo));
        assert_eq!(kind("oracle").unwrap_err(), "must be `additive`, `price`, `bandit` or `ppo`");
    }

    #[test]
    fn a_price_needs_a_capacity_and_a_tick_its_unit() {
        assert_eq!(faults(&Config::default()), [""; 0]);
        let price = Config { kind: Kind::Price, ..Config::default() };
        assert!(faults(&price)[0].starts_with("policy.service_capacity: not set"));
        let tick = |tick: &str| Config { tick: Some(tick.to_owned()), ..Config::default() };
        assert_eq!(faults(&tick("500ms")), [""; 0]);
        assert_eq!(tick("500ms").tick_ms(), 500);
        for odd in ["", "1", "99ms", "61s", "2m", "1.5s", "s", "99999999999999999999s"] {
            assert!(faults(&tick(odd))[0].starts_with("policy.tick: must be"), "{odd}");
        }
    }

    #[test]
    fn every_number_out_of_range_is_named() {
        let nan = f64::NAN;
        let broken = Config {
            alpha: nan,
            r_min: nan,
            r_max: nan,
            step: 1.1,
            evidence_min: -1.0,
            hazard: 1.0,
            optimism: nan,
            softness: 0.0,
            price_gain: 0.0,
            service_capacity: Some(0.0),
            burst_seconds: Some(nan),
            ..Config::default()
        };
        assert_eq!(faults(&broken).len(), 11, "{:#?}", faults(&broken));
    }
}
