//! Regimes: what kind of world the policies meet, each by its name.

use std::{fmt, str::FromStr};

/// A part of the agents asks for more, for a while.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Surge {
    /// When it begins and ends, as shares of the run, 0 to 1.
    pub span: (f64, f64),
    /// The share of agents that take part, 0 to 1.
    pub agents: f64,
    /// How many times as much they ask for.
    pub factor: f64,
}

/// The service can serve less, for a while.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dip {
    /// When it begins and ends, as shares of the run, 0 to 1.
    pub span: (f64, f64),
    /// What is left of the capacity, 0 to 1.
    pub left: f64,
}

/// What kind of world it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Regime {
    /// What the command line calls it.
    pub name: &'static str,
    /// What is special about it, in a few words.
    pub about: &'static str,
    /// Capacity, as a share of the agents' mean demand.
    pub capacity: f64,
    /// The share of served requests that their users rate, 0 to 1.
    pub rated: f64,
    /// The share of agents whose quality is mirrored at 3.5 at half-time, 0 to 1.
    pub changed: f64,
    /// Ratings of 1 for the best tenth of the agents, as a share of all ratings, 0 to 1.
    pub bombers: f64,
    /// Ratings of 5 for the worst tenth of the agents, as a share of all ratings, 0 to 1.
    pub colluders: f64,
    /// How many identities bombers and colluders have.
    pub identities: u32,
    /// What a rating without a receipt weighs, 0 to 1; 1 where receipts are off.
    pub without_receipt: f64,
    /// The share of its served requests that an agent of the worst tenth has asked for itself, to
    /// have its friends rate them 5 with genuine receipts, 0 to 1.
    pub farmed: f64,
    /// Who asks for more, and when.
    pub surge: Option<Surge>,
    /// When the service can serve less.
    pub dip: Option<Dip>,
}

const BASE: Regime = Regime {
    name: "base",
    about: "capacity 50 % of demand; a fifth of the agents change at half-time",
    capacity: 0.5,
    rated: 0.03,
    changed: 0.2,
    bombers: 0.0,
    colluders: 0.0,
    identities: 10,
    without_receipt: 1.0,
    farmed: 0.0,
    surge: None,
    dip: None,
};

const ATTACK: Regime = Regime {
    name: "attack",
    about: "5 % bombers and 5 % colluders of 10 identities",
    bombers: 0.05,
    colluders: 0.05,
    ..BASE
};

const SYBIL: Regime = Regime {
    name: "sybil",
    about: "5 % bombers and 5 % colluders of 500 identities, no receipts",
    identities: 500,
    ..ATTACK
};

/// The regimes there are.
pub const REGIMES: &[Regime] = &[
    BASE,
    Regime {
        name: "slack",
        about: "capacity 130 % of demand, reached only at the peak",
        capacity: 1.3,
        ..BASE
    },
    Regime { name: "bombers", about: "5 % bombers of 10 identities", bombers: 0.05, ..BASE },
    ATTACK,
    SYBIL,
    Regime {
        name: "sybil-prefer",
        about: "the sybils, and a rating without a receipt weighs a tenth (`receipts = \"prefer\"`)",
        without_receipt: 0.1,
        ..SYBIL
    },
    Regime {
        name: "sybil-require",
        about: "the sybils, and no rating is taken without a receipt (`receipts = \"require\"`)",
        without_receipt: 0.0,
        ..SYBIL
    },
    Regime {
        name: "farm",
        about: "the worst tenth ask themselves for 5 % of what they are served and rate it 5, with \
                receipts for 500 users",
        identities: 500,
        farmed: 0.05,
        without_receipt: 0.0,
        ..BASE
    },
    Regime { name: "sparse", about: "0.5 % of the requests are rated", rated: 0.005, ..BASE },
    Regime { name: "drift", about: "every agent changes at half-time", changed: 1.0, ..BASE },
    Regime {
        name: "crowd",
        about: "a tenth of the agents ask for five times as much for an eighth of the run; nobody \
                changes",
        changed: 0.0,
        surge: Some(Surge { span: (0.25, 0.375), agents: 0.1, factor: 5.0 }),
        ..BASE
    },
    Regime {
        name: "outage",
        about: "capacity is halved for a tenth of the run, and policies are told; nobody changes",
        changed: 0.0,
        dip: Some(Dip { span: (0.6, 0.7), left: 0.5 }),
        ..BASE
    },
];

impl Regime {
    /// Returns all names, for messages.
    fn names() -> String {
        REGIMES.iter().map(|regime| regime.name).collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Display for Regime {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name)
    }
}

impl FromStr for Regime {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        REGIMES
            .iter()
            .find(|regime| regime.name == name)
            .copied()
            .ok_or_else(|| format!("no regime `{name}`: choose from {}", Self::names()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_regime_is_found_by_the_name_it_shows() {
        for regime in REGIMES {
            assert_eq!(regime.to_string().parse(), Ok(*regime));
        }
        assert!("bas".parse::<Regime>().unwrap_err().contains("base, slack"));
    }
}
