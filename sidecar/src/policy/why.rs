//! Why an agent's limit is what it is, in words: for its developer, and for who operates the service.
//!
//! All of it is read off the agent's state and the policy's configuration: nothing is decided here, and
//! nothing of other agents is told.

use serde::{Deserialize, Serialize};

use super::{AnyLaw, Explained, GuardConfig, Hold, Mode, Policy, State};

/// Why an agent's rate is what it is. Numbers that the policy does not know are absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Why {
    /// The policy in force.
    pub policy: String,
    /// The estimated quality, as a mean score from 1 to 5.
    pub quality: Option<f64>,
    /// The standard deviation of that estimate, in points of score.
    pub deviation: Option<f64>,
    /// Ratings that it rests on, by weight.
    pub evidence: Option<f64>,
    /// What the agent asks for, tokens per second.
    pub demand: Option<f64>,
    /// What a token costs, in points of score above 3.
    pub price: Option<f64>,
    /// What the base law asks for, tokens per second.
    pub base_rate: Option<f64>,
    /// What the learned part adds to the logarithm of the rate; in shadow mode what it would add.
    pub residual: Option<f64>,
    /// The rate that the policy asks for, tokens per second.
    pub refill_rate: f64,
    /// What an operator did: `none`, `frozen` or `override`.
    pub held: String,
    /// The same as short sentences, the first cause first.
    pub sentences: Vec<String>,
}

/// A rate this close to another one, as a share, is the same for people.
const SAME: f64 = 0.005;

/// Evidence below which nothing is said of an agent's quality.
const NOBODY: f64 = 1e-9;

impl Policy {
    /// Returns why an agent of this `state` has the rate that it has.
    #[must_use]
    pub fn why(&self, state: &State) -> Why {
        let mut claimed = state.clone();
        self.claim(&mut claimed);
        let state = &claimed;
        let mut sentences = Vec::new();
        match state.hold() {
            Hold::None => {}
            Hold::Frozen => sentences.push(
                "An operator froze it: its rate stays as it is until that is lifted.".to_owned(),
            ),
            Hold::Override(rate) => {
                sentences.push(format!("An operator set its rate to {rate:.2} tokens/s by hand."));
            }
        }
        let explained = self.explain(state);
        match (&self.law, &explained) {
            (AnyLaw::Additive(law), _) => {
                let config = law.config();
                sentences.push(format!(
                    "Each rating moves its rate by {} tokens/s for every point of score above or below 3, \
                     between {} and {} tokens/s.",
                    config.alpha, config.r_min, config.r_max
                ));
                sentences.push(bounds(state.rate(), config.r_min, config.r_max).unwrap_or_else(
                    || format!("All its ratings together made that {:.2} tokens/s.", state.rate()),
                ));
            }
            (_, Some(explained)) => self.priced(explained, state, &mut sentences),
            (_, None) => {}
        }
        let of = |value: fn(&Explained) -> f64| explained.as_ref().map(value);
        Why {
            policy: self.law.name().to_owned(),
            quality: of(|explained| explained.quality.mean),
            deviation: of(|explained| explained.quality.variance.sqrt()),
            evidence: of(|explained| explained.evidence),
            demand: of(|explained| explained.demand),
            price: of(|explained| explained.price),
            base_rate: of(|explained| explained.base),
            residual: of(|explained| explained.residual),
            refill_rate: state.rate(),
            held: state.hold().as_str().to_owned(),
            sentences,
        }
    }

    /// What the policies that price capacity have to say.
    fn priced(&self, explained: &Explained, state: &State, sentences: &mut Vec<String>) {
        let Some(guard) = self.guard() else { return };
        let Explained { quality, evidence, demand, price, base, residual, rate } = *explained;
        let deviation = quality.variance.sqrt();
        if evidence < NOBODY {
            sentences.push(format!(
                "Nobody has rated it yet: until then it is taken for one of quality {:.1} ± {deviation:.1}.",
                quality.mean
            ));
        } else {
            sentences.push(format!(
                "Its ratings (worth {evidence:.1} of a trusted rater's) say a quality of {:.2} ± {deviation:.2}.",
                quality.mean
            ));
        }
        let worth = quality.mean - 3.0;
        sentences.push(if price <= 0.0 {
            "Capacity is free at the moment: there is more of it than anybody asks for.".to_owned()
        } else if worth > price {
            format!(
                "A request of it is worth {worth:+.2} points, more than the {price:.2} that capacity costs now."
            )
        } else {
            format!(
                "A request of it is worth {worth:+.2} points, less than the {price:.2} that capacity costs now."
            )
        });
        sentences.push(format!(
            "It asks for about {demand:.1} requests/s; for that, the base law gives {base:.2} tokens/s."
        ));
        if residual.abs() > SAME {
            let change = residual.exp_m1() * 100.0;
            sentences.push(match guard.mode {
                Mode::Live => format!("What was learned changes that by {change:+.1} %."),
                _ => format!(
                    "What was learned would change that by {change:+.1} %, and is not applied."
                ),
            });
        }
        if state.hold() != Hold::None {
            return;
        }
        match guard.mode {
            Mode::Frozen => sentences.push("All rates are frozen by configuration.".to_owned()),
            Mode::Base => sentences.push("The kill switch is on: the base law decides.".to_owned()),
            Mode::Live | Mode::Shadow => {}
        }
        if evidence < guard.evidence_min {
            sentences.push(format!(
                "It is not moved before it has ratings worth {}.",
                guard.evidence_min
            ));
        } else if let Some(bound) = bounds(rate, guard.r_min, guard.r_max) {
            sentences.push(bound);
        } else if guard.mode != Mode::Frozen {
            let target = if guard.mode == Mode::Live { base * residual.exp() } else { base };
            let target = target.clamp(guard.r_min, guard.r_max);
            if (rate - target).abs() > SAME.max(0.02) * target {
                sentences.push(format!(
                    "It is at {rate:.2} tokens/s on its way there: a rate moves by at most {:.0} % in a tick.",
                    guard.step * 100.0
                ));
            }
        }
    }

    fn guard(&self) -> Option<&GuardConfig> {
        match &self.law {
            AnyLaw::Additive(_) => None,
            AnyLaw::Price(law) => Some(&law.config().guard),
            AnyLaw::Bandit(law) => Some(&law.price().config().guard),
            AnyLaw::Ppo(law) => Some(&law.price().config().guard),
        }
    }
}

/// Says that a rate is at one of its bounds, if it is.
fn bounds(rate: f64, least: f64, most: f64) -> Option<String> {
    if rate <= least * (1.0 + SAME) {
        return Some(format!(
            "That is the least rate there is, {least} tokens/s: nobody falls below it."
        ));
    }
    (rate >= most * (1.0 - SAME))
        .then(|| format!("That is the largest rate there is, {most} tokens/s."))
}

#[cfg(test)]
mod tests {
    use tower_merit::bucket::Limits;

    use super::*;
    use crate::policy::{Config, Kind, Market, Vote};

    fn policy(kind: Kind) -> Policy {
        let config = Config { kind, service_capacity: Some(100.0), ..Config::default() };
        Policy::new(&config, Limits::per_second(20.0, 40).unwrap())
    }

    fn rated(policy: &Policy, scores: &[f64]) -> State {
        let mut state = policy.begin();
        for (index, score) in scores.iter().enumerate() {
            let at_ms = 1_800_000_000_000 + 1_000 * index as u64;
            policy
                .vote(&mut state, Vote { score: *score, rater: index as u64, at_ms, weight: 1.0 });
        }
        state
    }

    fn says(why: &Why, part: &str) -> bool {
        why.sentences.iter().any(|sentence| sentence.contains(part))
    }

    #[test]
    fn additive_tells_its_rule_and_its_bounds_and_knows_no_quality() {
        let policy = policy(Kind::Additive);
        let why = policy.why(&rated(&policy, &[5.0; 3]));
        assert_eq!((why.quality, why.price), (None, None));
        assert!((why.refill_rate - 20.6).abs() < 1e-9, "{why:?}");
        assert!(says(&why, "by 0.1 tokens/s") && says(&why, "20.60"), "{why:?}");
        assert!(says(&policy.why(&rated(&policy, &[5.0; 300])), "largest rate"));
        assert!(says(&policy.why(&rated(&policy, &[1.0; 300])), "least rate"));
    }

    #[test]
    fn price_tells_quality_price_and_what_stands_in_the_way() {
        let mut policy = policy(Kind::Price);
        let fresh = policy.why(&policy.begin());
        assert!(
            says(&fresh, "Nobody has rated it yet") && says(&fresh, "not moved before"),
            "{fresh:?}"
        );
        policy.see(Market { price: 0.5, use_share: 1.0, ..*policy.market() });
        let good = policy.why(&rated(&policy, &[5.0; 30]));
        assert!(good.quality.unwrap() > 4.0 && good.price == Some(0.5), "{good:?}");
        assert!(says(&good, "more than the 0.50 that capacity costs"), "{good:?}");
        let bad = policy.why(&rated(&policy, &[1.0; 30]));
        assert!(says(&bad, "less than the 0.50 that capacity costs"), "{bad:?}");
    }

    #[test]
    fn an_operators_hand_is_named_first_with_every_policy() {
        for kind in [Kind::Additive, Kind::Price, Kind::Bandit, Kind::Ppo] {
            let policy = policy(kind);
            let mut state = rated(&policy, &[5.0; 3]);
            let before = state.rate();
            state.set_hold(Hold::Frozen);
            let at_ms = 1_800_000_100_000;
            for score in [1.0; 50] {
                policy.vote(&mut state, Vote { score, rater: 1, at_ms, weight: 1.0 });
            }
            assert_eq!(state.rate(), before, "{kind:?}");
            let why = policy.why(&state);
            assert_eq!(why.held, "frozen");
            assert!(why.sentences[0].contains("froze"), "{why:?}");
            state.set_hold(Hold::Override(3.0));
            policy.vote(&mut state, Vote { score: 5.0, rater: 1, at_ms, weight: 1.0 });
            assert_eq!(state.rate(), 3.0, "{kind:?}");
            assert!(policy.why(&state).sentences[0].contains("3.00 tokens/s by hand"));
            // Another policy takes the agent over as it is held.
            let other = if kind == Kind::Price {
                self::policy(Kind::Additive)
            } else {
                self::policy(Kind::Price)
            };
            state.set_hold(Hold::Frozen);
            other.vote(&mut state, Vote { score: 5.0, rater: 1, at_ms, weight: 1.0 });
            assert_eq!((state.hold(), state.rate()), (Hold::Frozen, 3.0), "{kind:?}");
        }
    }
}
