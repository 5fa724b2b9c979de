//! Who decides: the policy in force, and what a rating weighs in it.
//!
//! A rating weighs its rater's trust times what its receipt is worth. Trust is soft: it lives in memory,
//! starts anew with the process, and a rating that is read twice (because the process that read it first
//! ended) may teach it twice. With trust off and receipts not looked at, an agent's quality is a fold of its
//! ratings and of nothing else.

use tower_merit::bucket::{BucketName, Limits, earned};

use super::{Aim, Unproved};
use crate::{
    policy::{AnyLaw, Asked, Decision, Market, Policy, Raters, State, rater_of, vote_of},
    rating::Rating,
};

/// The policy, and the raters it has met.
pub(super) struct Judge {
    policy: Policy,
    raters: Option<Raters>,
    unproved: Unproved,
    unproved_weight: f64,
    aim: Aim,
}

impl Judge {
    /// Returns a judge by `aim`.
    pub(super) fn new(aim: Aim, unproved: Unproved) -> Self {
        let raters = aim.policy.trust.then(Raters::default);
        let unproved_weight = aim.policy.unproved_weight;
        let policy = Policy::new(&aim.policy, aim.start);
        Self { policy, raters, unproved, unproved_weight, aim }
    }

    /// Returns the limits of an agent's named buckets when its default bucket has `limits`.
    pub(super) fn named(&self, limits: Limits) -> Vec<(BucketName, Limits)> {
        let (rate, start) = (limits.refill(), self.aim.start.refill());
        let scaled = |(name, configured): &(BucketName, Limits)| {
            (name.clone(), earned(configured, rate, start))
        };
        self.aim.earned.iter().map(scaled).collect()
    }

    /// Goes on by another `aim`. What is known of agents and raters stays, and so does the market; agents
    /// that ratings have moved stay where they are.
    pub(super) fn reconfigure(&mut self, aim: Aim) {
        self.policy.start_from_now_on(aim.start);
        self.policy.reconfigure(&aim.policy);
        self.unproved_weight = aim.policy.unproved_weight;
        self.raters = match self.raters.take() {
            _ if !aim.policy.trust => None,
            Some(raters) => Some(raters),
            None => Some(Raters::default()),
        };
        self.aim = aim;
    }

    /// Goes on from the limits of `aim` alone, if its policy is the one in force and they are others; false,
    /// and nothing is done, if not.
    pub(super) fn rebase(&mut self, aim: &Aim) -> bool {
        let moved = (aim.start, &aim.earned) != (self.aim.start, &self.aim.earned);
        let limits_alone = moved && aim.policy == self.aim.policy;
        if limits_alone {
            self.policy.start_from_now_on(aim.start);
            self.aim.clone_from(aim);
        }
        limits_alone
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
        policy::{Config, Kind},
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
        Judge::new(Aim::new(config(trust), start), unproved)
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
        let start = Limits::per_second(20.0, 40).unwrap();
        let aim = |config| Aim::new(config, start);
        judge.reconfigure(aim(Config { unproved_weight: 0.5, ..config(false) }));
        assert_eq!(weight(&mut judge, &plain), 0.5);
    }

    #[test]
    fn other_limits_to_start_from_move_newcomers_and_what_scales_and_nothing_else() {
        let mut judge = judge(Unproved::All, false);
        let limits = |rate, capacity| Limits::per_second(rate, capacity).unwrap();
        let writes = BucketName::new("writes").unwrap();
        let mut rated = judge.policy().begin();
        take(&mut judge, &mut rated, &rating("u", 5));
        let aim = Aim {
            earned: vec![(writes.clone(), limits(2.0, 4))],
            ..Aim::new(config(false), limits(10.0, 20))
        };
        let before = rated.limits();
        assert!(judge.rebase(&aim));
        assert_eq!(judge.policy().begin().limits(), limits(10.0, 20));
        assert_eq!(rated.limits(), before);
        // Twice what it starts from earns twice the bucket.
        assert_eq!(judge.named(limits(20.0, 40)), [(writes, limits(4.0, 8))]);
        assert!(!judge.rebase(&aim), "nothing is other than before");
        let policy = Config { r_max: 30.0, ..config(false) };
        assert!(!judge.rebase(&Aim { policy, ..aim }), "the policy is another one");
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
        let start = Limits::per_second(20.0, 40).unwrap();
        let aim = |trust| Aim::new(config(trust), start);
        judge.reconfigure(aim(true));
        take(&mut judge, &mut state, &rating("bomber", 1));
        let weight = state.standing().unwrap().estimator().evidence() - before - weight;
        assert!(weight < 0.02, "{weight}");
        judge.reconfigure(aim(false));
        let before = state.standing().unwrap().estimator().evidence();
        take(&mut judge, &mut state, &rating("bomber", 1));
        assert_eq!(state.standing().unwrap().estimator().evidence() - before, 1.0);
    }
}
