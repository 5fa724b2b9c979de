//! Who decides: the policy in force, and what a rating weighs in it.
//!
//! A rating weighs its rater's trust times what its receipt is worth. Trust is soft: it lives in memory,
//! starts anew with the process, and a rating that is read twice (because the process that read it first
//! ended) may teach it twice. With trust off and receipts not looked at, an agent's quality is a fold of its
//! ratings and of nothing else.

use tower_merit::bucket::{BucketName, Limits, earned};

use super::Unproved;
use crate::{
    policy::{AnyLaw, Asked, Config, Decision, Market, Policy, Raters, State, rater_of, vote_of},
    rating::Rating,
};

/// The policy, and the raters it has met.
pub(super) struct Judge {
    policy: Policy,
    raters: Option<Raters>,
    unproved: Unproved,
    unproved_weight: f64,
    start: Limits,
    /// Named buckets that scale with what an agent earned, as they are configured.
    earned: Vec<(BucketName, Limits)>,
}

impl Judge {
    /// Returns a judge by `config`, for agents that start from `start`.
    pub(super) fn new(
        config: &Config,
        start: Limits,
        unproved: Unproved,
        earned: Vec<(BucketName, Limits)>,
    ) -> Self {
        let raters = config.trust.then(Raters::default);
        let unproved_weight = config.unproved_weight;
        let policy = Policy::new(config, start);
        Self { policy, raters, unproved, unproved_weight, start, earned }
    }

    /// Returns the limits of an agent's named buckets when its default bucket has `limits`.
    pub(super) fn named(&self, limits: Limits) -> Vec<(BucketName, Limits)> {
        let (rate, start) = (limits.refill(), self.start.refill());
        let scaled = |(name, configured): &(BucketName, Limits)| {
            (name.clone(), earned(configured, rate, start))
        };
        self.earned.iter().map(scaled).collect()
    }

    /// Goes on by another `config`. What is known of agents and raters stays, and so does the
    /// market.
    pub(super) fn reconfigure(&mut self, config: &Config) {
        self.policy.reconfigure(config);
        self.unproved_weight = config.unproved_weight;
        self.raters = match self.raters.take() {
            _ if !config.trust => None,
            Some(raters) => Some(raters),
            None => Some(Raters::default()),
        };
    }

    pub(super) fn policy(&self) -> &Policy {
        &self.policy
    }

    pub(super) fn law_mut(&mut self) -> &mut AnyLaw {
        self.policy.law_mut()
    }

    pub(super) fn see(&mut self, market: Market) {
        self.policy.see(market);
    }

    /// Returns what a rating weighs, 0 to 1, and teaches its rater's trust: ask once for each rating.
    pub(super) fn weigh(&mut self, state: &State, rating: &Rating) -> f64 {
        let belief = match (&mut self.raters, self.policy.belief(state)) {
            // `additive` believes everybody, and is spared the look.
            (_, None) | (None, _) => None,
            (Some(raters), Some(belief)) => Some((raters, belief)),
        };
        let trust = belief.map_or(1.0, |(raters, belief)| {
            raters.weigh(rater_of(rating.user().as_str(), 0), rating.score().value(), belief)
        });
        let proof = match (rating.receipt_id(), self.unproved) {
            (Some(_), _) | (None, Unproved::All) => 1.0,
            (None, Unproved::Less) => self.unproved_weight,
            (None, Unproved::Nothing) => 0.0,
        };
        trust * proof
    }

    /// Folds a rating of `weight` into an agent's state and decides.
    pub(super) fn vote(&self, state: &mut State, rating: &Rating, weight: f64) -> Decision {
        self.policy.vote(state, vote_of(rating, weight))
    }

    /// Decides at a tick.
    pub(super) fn tick(&self, state: &mut State, asked: Asked) -> Decision {
        self.policy.tick(state, asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        policy::Kind,
        rating::{Poster, RatingRequest, ReceiptId},
    };

    fn rating(user: &str, score: u32) -> Rating {
        let body = format!(r#"{{"agent_id":"a","user_id":"{user}","score":{score}}}"#);
        let request = RatingRequest::from_json(body.as_bytes()).unwrap();
        request.into_rating(Poster::new("p").unwrap(), 1_800_000_000_000_000).unwrap()
    }

    fn config(trust: bool) -> Config {
        Config { kind: Kind::Price, service_capacity: Some(100.0), trust, ..Config::default() }
    }

    fn judge(unproved: Unproved, trust: bool) -> Judge {
        let start = Limits::per_second(20.0, 40).unwrap();
        Judge::new(&config(trust), start, unproved, Vec::new())
    }

    fn take(judge: &mut Judge, state: &mut State, rating: &Rating) {
        let weight = judge.weigh(state, rating);
        judge.vote(state, rating, weight);
    }

    /// Returns what `rating` weighs, for an agent that nobody rated yet.
    fn weight(judge: &mut Judge, rating: &Rating) -> f64 {
        let mut state = judge.policy().begin();
        take(judge, &mut state, rating);
        state.standing().unwrap().estimator().evidence()
    }

    #[test]
    fn a_rating_without_a_receipt_weighs_what_the_configuration_says_also_a_new_one() {
        let plain = rating("u", 4);
        let proved = rating("u", 4).receipted(ReceiptId::new(&"0".repeat(32)).unwrap());
        for (unproved, expected) in
            [(Unproved::All, 1.0), (Unproved::Less, 0.1), (Unproved::Nothing, 0.0)]
        {
            let mut judge = judge(unproved, false);
            assert_eq!(weight(&mut judge, &plain), expected);
            assert_eq!(weight(&mut judge, &proved), 1.0);
        }
        let mut judge = judge(Unproved::Less, false);
        judge.reconfigure(&Config { unproved_weight: 0.5, ..config(false) });
        assert_eq!(weight(&mut judge, &plain), 0.5);
    }

    #[test]
    fn a_rater_who_lies_far_off_again_and_again_weighs_next_to_nothing() {
        let mut judge = judge(Unproved::All, true);
        let mut state = judge.policy().begin();
        for user in 0..100 {
            take(&mut judge, &mut state, &rating(&format!("u{user}"), 5));
        }
        for _ in 0..20 {
            take(&mut judge, &mut state, &rating("bomber", 1));
        }
        let before = state.standing().unwrap().estimator().evidence();
        take(&mut judge, &mut state, &rating("bomber", 1));
        let weight = state.standing().unwrap().estimator().evidence() - before;
        assert!(weight < 0.02, "{weight}");
        // Trust survives another configuration, and ends with `trust = false`.
        judge.reconfigure(&config(true));
        take(&mut judge, &mut state, &rating("bomber", 1));
        let weight = state.standing().unwrap().estimator().evidence() - before - weight;
        assert!(weight < 0.02, "{weight}");
        judge.reconfigure(&config(false));
        let before = state.standing().unwrap().estimator().evidence();
        take(&mut judge, &mut state, &rating("bomber", 1));
        assert_eq!(state.standing().unwrap().estimator().evidence() - before, 1.0);
    }
}
