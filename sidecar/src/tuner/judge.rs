//! Who decides: the policy in force, and what a rating weighs in it.
//!
//! A rating weighs its rater's trust times what its receipt is worth. Trust is soft: it lives in memory,
//! starts anew with the process, and a rating that is folded twice (because its first write failed)
//! may teach it twice. With trust off and receipts not looked at, an agent's quality is a fold of its
//! ratings and of nothing else.

use tower_merit::bucket::{BucketName, Limits, earned};

use crate::{
    policy::{AnyLaw, Asked, Config, Decision, Market, Policy, Raters, State, rater_of, vote_of},
    rating::Rating,
};

/// The policy, and the raters it has met.
pub(super) struct Judge {
    policy: Policy,
    raters: Option<Raters>,
    unproved: f64,
    start: Limits,
    /// Named buckets that scale with what an agent earned, as they are configured.
    earned: Vec<(BucketName, Limits)>,
}

impl Judge {
    /// Returns a judge by `config`; a rating without a receipt that holds weighs `unproved`, 0 to 1.
    pub(super) fn new(
        config: &Config,
        start: Limits,
        unproved: f64,
        earned: Vec<(BucketName, Limits)>,
    ) -> Self {
        let raters = config.trust.then(Raters::default);
        Self { policy: Policy::new(config, start), raters, unproved, start, earned }
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

    /// Folds a rating into an agent's state and decides.
    pub(super) fn vote(&mut self, state: &mut State, rating: &Rating) -> Decision {
        let belief = match (&mut self.raters, self.policy.belief(state)) {
            // `additive` believes everybody, and is spared the look.
            (_, None) | (None, _) => None,
            (Some(raters), Some(belief)) => Some((raters, belief)),
        };
        let trust = belief.map_or(1.0, |(raters, belief)| {
            raters.weigh(rater_of(rating.user().as_str(), 0), rating.score().value(), belief)
        });
        let proof = if rating.receipt_id().is_some() { 1.0 } else { self.unproved };
        self.policy.vote(state, vote_of(rating, trust * proof))
    }

    /// Decides at a tick.
    pub(super) fn tick(&self, state: &mut State, asked: Asked) -> Decision {
        self.policy.tick(state, asked)
    }
}
