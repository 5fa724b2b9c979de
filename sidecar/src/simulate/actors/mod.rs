//! Policies as the simulated world drives them: all agents at once, tick after tick.
//!
//! 1. In each tick a policy acts (rates), requests are admitted and rated, and then it learns.
//! 2. It sees what a tuner sees: demand and admissions by agent, ratings, the configured capacity.
//!    Only [`PolicyName::Reference`] and [`PolicyName::Clairvoyant`] see the world itself.
//! 3. Rates stay within the range of the simulation; all but the fixed and the all-seeing ones move by
//!    at most a quarter a tick.

mod adapted;
mod additive;
mod fill;
mod fixed;
mod kalman;
mod learned;
mod residual;
mod shipped;

pub use adapted::{Adapted, Believed, Teach, Weigh};
pub(super) use fixed::equal;
pub(super) use residual::{residual, settled};

use std::{fmt, str::FromStr};

use super::{World, world::Ratings};
use crate::policy::EstimatorKind;

/// What the agents asked for in one tick, by agent.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Which tick it is.
    pub tick: usize,
    /// Requests made.
    pub demand: &'a [f64],
    /// Requests that the buckets admitted.
    pub admitted: &'a [f64],
    /// What the buckets hold now, in tokens.
    pub tokens: &'a [f64],
    /// The most that the buckets hold, in tokens.
    pub capacity: &'a [f64],
}

/// A change of an agent's quality that a policy reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Whose.
    pub agent: usize,
    /// At which tick.
    pub tick: usize,
    /// At which of the agent's ratings, from 1.
    pub ratings: u32,
    /// Whether it fell.
    pub fell: bool,
}

/// A policy at work in one world.
pub trait Actor {
    /// Returns the agents' rates at `tick`, in tokens per tick; `capacity` is what the service can
    /// serve in a tick.
    fn act(&mut self, tick: usize, capacity: f64) -> &[f64];

    /// Returns what is admitted at `tick` whatever the buckets hold, or `None` when they decide.
    fn admit(&mut self, _tick: usize) -> Option<&[f64]> {
        None
    }

    /// Learns what a tick brought.
    fn learn(&mut self, asked: Asked<'_>, ratings: &Ratings);

    /// Returns what the policy believes of an agent's quality, when it believes anything.
    fn belief(&self, _agent: usize) -> Option<f64> {
        None
    }

    /// Returns the changes of quality that it reported so far, when it reports any.
    fn found(&self) -> Option<&[Found]> {
        None
    }
}

/// The policies there are, with their numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PolicyName {
    /// Everybody gets the same share of capacity for ever.
    Static,
    /// Everybody gets the largest rate: no limit.
    StaticMax,
    /// r ← clamp(r + α·(score − 3)), at this α in tokens per tick.
    Additive(f64),
    /// The same at the α that is best in the regime, of a few tried on other seeds. It is the comparison
    /// that tries them; on its own it is [`PolicyName::Additive`] at the default α.
    AdditiveBest,
    /// The shipped `price`: changepoint mixture, trust in raters, the constants of `[policy]`.
    Price,
    /// The same with `estimator = "kalman"`: a Kalman filter and a Page-Hinkley alarm.
    PricePageHinkley,
    /// The shipped `bandit` over that `price`, with cohorts and arms that learn.
    Bandit,
    /// The prototype's price law over a Kalman estimate of quality.
    PriceKalman,
    /// The prototype's, with trust in raters and a Page-Hinkley alarm.
    PriceTrust,
    /// The shipped `ppo`: `price` with the residual that was trained, trying nothing.
    Ppo,
    /// Fills capacity by the estimated quality.
    Greedy,
    /// Fills capacity by a draw from what quality may be, with trust and Page-Hinkley.
    Thompson,
    /// Sees every agent's quality and mean demand, and fills capacity by quality.
    Reference,
    /// Sees the arrivals too, and admits them one by one.
    Clairvoyant,
}

/// α where `additive` stands alone, as in `[policy]`.
const ALPHA_DEFAULT: f64 = 0.1;

/// The range of α, as in `[policy]`.
const ALPHA_RANGE: std::ops::RangeInclusive<f64> = 0.000_001..=1_000.0;

impl PolicyName {
    /// Those that are compared when nobody names any.
    pub const DEFAULT: [Self; 16] = [
        Self::Static,
        Self::StaticMax,
        Self::Additive(0.1),
        Self::Additive(1.0),
        Self::Additive(5.0),
        Self::Additive(10.0),
        Self::AdditiveBest,
        Self::Price,
        Self::PricePageHinkley,
        Self::Bandit,
        Self::PriceKalman,
        Self::PriceTrust,
        Self::Ppo,
        Self::Greedy,
        Self::Thompson,
        Self::Clairvoyant,
    ];

    /// Returns the policy at the start of `world`.
    #[must_use]
    pub fn start<'w>(self, world: &'w World) -> Box<dyn Actor + 'w> {
        use learned::{Law, Learned};
        match self {
            Self::Static => Box::new(fixed::Fixed::equal(world)),
            Self::StaticMax => Box::new(fixed::Fixed::most(world)),
            Self::Additive(alpha) => Box::new(additive::Additive::new(world, alpha)),
            Self::AdditiveBest => Box::new(additive::Additive::new(world, ALPHA_DEFAULT)),
            Self::Price => shipped::price(world, EstimatorKind::Changepoint),
            Self::PricePageHinkley => shipped::price(world, EstimatorKind::Kalman),
            Self::Bandit => shipped::bandit(world),
            Self::PriceKalman => Box::new(Learned::new(world, Law::price(), false)),
            Self::PriceTrust => Box::new(Learned::new(world, Law::price(), true)),
            Self::Ppo => Box::new(residual::shipped(world)),
            Self::Greedy => Box::new(Learned::new(world, Law::Greedy, false)),
            Self::Thompson => Box::new(Learned::new(world, Law::thompson(world), true)),
            Self::Reference => Box::new(fixed::Reference::new(world)),
            Self::Clairvoyant => Box::new(fixed::Clairvoyant::new(world)),
        }
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Static => "static",
            Self::StaticMax => "static-max",
            Self::Additive(alpha) => return write!(out, "additive:{alpha}"),
            Self::AdditiveBest => "additive:best",
            Self::Price => "price",
            Self::PricePageHinkley => "price-page-hinkley",
            Self::Bandit => "bandit",
            Self::PriceKalman => "price-kalman",
            Self::PriceTrust => "price-trust",
            Self::Ppo => "ppo",
            Self::Greedy => "greedy",
            Self::Thompson => "thompson",
            Self::Reference => "reference",
            Self::Clairvoyant => "clairvoyant",
        };
        out.pad(name)
    }
}

impl FromStr for PolicyName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, number) = match text.split_once(':') {
            Some((name, number)) => (name, Some(number)),
            None => (text, None),
        };
        let policy = match name {
            "additive" if number == Some("best") => return Ok(Self::AdditiveBest),
            "additive" => {
                let alpha = match number {
                    None => ALPHA_DEFAULT,
                    Some(number) => {
                        number.parse().ok().filter(|alpha| ALPHA_RANGE.contains(alpha)).ok_or_else(
                            || {
                                format!(
                                    "α of `{text}` must be {} to {}, like additive:0.1",
                                    ALPHA_RANGE.start(),
                                    ALPHA_RANGE.end()
                                )
                            },
                        )?
                    }
                };
                return Ok(Self::Additive(alpha));
            }
            "static" => Self::Static,
            "static-max" => Self::StaticMax,
            "price" => Self::Price,
            "price-page-hinkley" => Self::PricePageHinkley,
            "bandit" => Self::Bandit,
            "price-kalman" => Self::PriceKalman,
            "price-trust" => Self::PriceTrust,
            "ppo" => Self::Ppo,
            "greedy" => Self::Greedy,
            "thompson" => Self::Thompson,
            "reference" => Self::Reference,
            "clairvoyant" => Self::Clairvoyant,
            other => {
                return Err(format!(
                    "no policy `{other}`: choose from static, static-max, additive[:ALPHA|:best], price, \
                     price-page-hinkley, bandit, ppo, price-kalman, price-trust, greedy, thompson, reference, clairvoyant"
                ));
            }
        };
        match number {
            None => Ok(policy),
            Some(number) => Err(format!("policy `{name}` takes no number: leave out `:{number}`")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_found_by_the_name_it_shows() {
        for policy in PolicyName::DEFAULT.into_iter().chain([PolicyName::Reference]) {
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
        assert_eq!("additive".parse(), Ok(PolicyName::Additive(0.1)));
    }

    #[test]
    fn a_wrong_policy_is_told_what_there_is() {
        for (text, told) in [
            ("addtive", "no policy `addtive`: choose from static"),
            ("additive:no", "α of `additive:no` must be"),
            ("additive:0", "0.000001 to 1000"),
            ("price:2", "takes no number: leave out `:2`"),
        ] {
            let error = text.parse::<PolicyName>().unwrap_err();
            assert!(error.contains(told), "{error}");
        }
    }
}
