//! Who asks: agents with tokens of their own, some more often than others.

use std::{fmt, str::FromStr};

use http::{HeaderMap, HeaderValue, header};
use merit_integration::keys;
use rand::RngExt as _;

/// How often each agent asks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Spread {
    /// All alike.
    Uniform,
    /// The agent of rank k as often as 1 / k^1.1.
    Zipf,
}

const ZIPF_EXPONENT: f64 = 1.1;

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uniform => "uniform",
            Self::Zipf => "Zipf(1.1)",
        })
    }
}

#[derive(Debug, thiserror::Error)]
#[error("must be uniform or zipf")]
pub(crate) struct NoSpread;

impl FromStr for Spread {
    type Err = NoSpread;

    fn from_str(text: &str) -> Result<Self, NoSpread> {
        match text {
            "uniform" => Ok(Self::Uniform),
            "zipf" => Ok(Self::Zipf),
            _ => Err(NoSpread),
        }
    }
}

/// Agents, their header fields, and how often each asks.
pub(crate) struct Crowd {
    /// Share of requests of the agents up to this one, ascending to 1.
    up_to: Vec<f64>,
    fields: Vec<HeaderMap>,
}

/// The header that the hand-written rivals take for an identity.
pub(crate) const AGENT_HEADER: &str = "x-agent";

impl Crowd {
    pub(crate) fn new(agents: u32, spread: Spread) -> Self {
        let weight = |rank: u32| match spread {
            Spread::Uniform => 1.0,
            Spread::Zipf => f64::from(rank).powf(-ZIPF_EXPONENT),
        };
        let total: f64 = (1..=agents).map(weight).sum();
        let mut sum = 0.0;
        let up_to = (1..=agents).map(|rank| {
            sum += weight(rank) / total;
            sum
        });
        Self { up_to: up_to.collect(), fields: (0..agents).map(|n| fields(&name(n))).collect() }
    }

    /// Returns the number of the agent that asks next.
    pub(crate) fn pick(&self, random: &mut impl rand::Rng) -> usize {
        let point: f64 = random.random();
        self.up_to.partition_point(|&share| share < point).min(self.up_to.len() - 1)
    }

    /// Returns the header fields of an agent's requests.
    pub(crate) fn fields(&self, agent: usize) -> &HeaderMap {
        &self.fields[agent]
    }
}

/// Returns an agent's id.
pub(crate) fn name(number: u32) -> String {
    format!("agent-{number}")
}

/// Returns the fields by which both kinds of layer know an agent.
pub(crate) fn fields(agent: &str) -> HeaderMap {
    let value = |text: &str| HeaderValue::from_str(text).expect("ids and tokens are visible ASCII");
    let mut fields = HeaderMap::new();
    fields.insert(header::AUTHORIZATION, value(&format!("Bearer {}", keys::agent(agent))));
    fields.insert(AGENT_HEADER, value(agent));
    fields
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::SmallRng};

    use super::*;

    #[test]
    fn in_a_zipf_crowd_the_first_agent_asks_as_often_as_its_rank_says() {
        let crowd = Crowd::new(100, Spread::Zipf);
        let mut random = SmallRng::seed_from_u64(1);
        let mut asked = [0.0; 100];
        for _ in 0..100_000 {
            asked[crowd.pick(&mut random)] += 1.0;
        }
        for rank in [2_u8, 4, 8] {
            let ratio = asked[0] / asked[usize::from(rank) - 1];
            let expected = f64::from(rank).powf(ZIPF_EXPONENT);
            assert!((ratio / expected - 1.0).abs() < 0.1, "rank {rank}: {ratio}, not {expected}");
        }
    }
}
