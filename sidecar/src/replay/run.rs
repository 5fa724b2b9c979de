//! One pass of recorded ratings through policies: what each agent's rate would have been.
//!
//! Every policy sees the same ratings in the same order; none sees another's state. The result is a
//! function of the ratings and the policies alone.

use tower_merit::AgentId;

use super::{
    candidate::Candidate,
    rows::{Cast, Event},
};
use crate::{
    policy::{Policy, State},
    rating::{Rating, Score, UserId},
};

/// One agent under one policy.
#[derive(Clone, Debug)]
struct Track {
    state: State,
    rates: Rates,
}

/// An agent's refill rates under one policy, in tokens per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// After the last rating.
    pub end: f64,
    /// The least, the start included.
    pub least: f64,
    /// The largest, the start included.
    pub largest: f64,
}

/// What is known of an agent's ratings, whatever the policy.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// How many.
    pub ratings: u64,
    /// Sum of their scores, each 1 to 5.
    pub score: f64,
    /// When the first one was, in Unix milliseconds.
    pub first_ms: u64,
    /// When the last one was, in Unix milliseconds.
    pub last_ms: u64,
}

/// Policies with the state of every agent under each.
pub struct Run<'c> {
    candidates: &'c [Candidate],
    tallies: Vec<Tally>,
    /// One row for each policy, one track in it for each agent.
    tracks: Vec<Vec<Track>>,
}

/// Folds a rating; returns the refill rate that it leads to. The one place where a replay touches
/// what a policy is.
pub(super) fn fold(policy: &Policy, state: &mut State, rating: &Rating) -> f64 {
    policy.fold(state, rating);
    policy.limits(state).refill().tokens()
}

/// Returns the rating that `event` is, among those whom `agents` and `users` name.
pub(super) fn rating_of(event: Event, agents: &[AgentId], users: &[UserId]) -> Rating {
    let (agent, user) = (&agents[event.agent as usize], &users[event.user as usize]);
    let score = Score::new(event.score).expect("a row's score is 1 to 5");
    Rating::recorded(agent.clone(), user.clone(), score, event.at_ms)
}

impl<'c> Run<'c> {
    /// Returns a run in which nobody is rated yet.
    #[must_use]
    pub fn new(candidates: &'c [Candidate]) -> Self {
        Self { candidates, tallies: Vec::new(), tracks: vec![Vec::new(); candidates.len()] }
    }

    /// Folds a rating into its agent's state under every policy.
    pub fn fold(&mut self, event: Event, cast: &Cast) {
        let agent = event.agent as usize;
        if agent >= self.tallies.len() {
            self.tallies.resize(agent + 1, Tally::default());
            for (candidate, tracks) in self.candidates.iter().zip(&mut self.tracks) {
                let start = candidate.start();
                let rates = Rates { end: start, least: start, largest: start };
                tracks.resize(agent + 1, Track { state: candidate.policy.begin(), rates });
            }
        }
        let tally = &mut self.tallies[agent];
        if tally.ratings == 0 {
            tally.first_ms = event.at_ms;
        }
        tally.ratings += 1;
        tally.score += event.score;
        tally.last_ms = event.at_ms;
        let rating = rating_of(event, cast.agents.all(), cast.users.all());
        for (candidate, tracks) in self.candidates.iter().zip(&mut self.tracks) {
            let Track { state, rates } = &mut tracks[agent];
            let rate = fold(&candidate.policy, state, &rating);
            *rates =
                Rates { end: rate, least: rates.least.min(rate), largest: rates.largest.max(rate) };
        }
    }

    /// Returns each rated agent's number, its ratings, and its rates under each policy.
    pub fn agents(&self) -> impl Iterator<Item = (u32, Tally, Vec<Rates>)> + '_ {
        let rated = (0..).zip(&self.tallies).filter(|(_, tally)| tally.ratings > 0);
        rated.map(|(number, tally)| {
            let rates = self.tracks.iter().map(|tracks| tracks[number as usize].rates).collect();
            (number, *tally, rates)
        })
    }

    /// Returns the refill rate of agent `number` under each policy by now, in tokens per second.
    #[must_use]
    pub fn rate(&self, number: u32, candidate: usize) -> f64 {
        self.tracks[candidate]
            .get(number as usize)
            .map_or_else(|| self.candidates[candidate].start(), |track| track.rates.end)
    }
}
