//! What the requests of one route are charged and how they are answered, computed once.

use std::{borrow::Cow, sync::Arc};

use http::{HeaderName, Request};
use metrics::{Counter, counter};

use super::{
    BuildError, Route,
    cost::{Cost, Kind},
    fields::Shown,
};
use crate::{
    bucket::{BucketName, Tokens},
    outage::Outage,
    store::{BucketRule, Held, TAKES_MAX, Take, Verdict},
};

/// What holds where a route does not say.
#[derive(Clone, Debug, Default)]
pub(super) struct Defaults {
    pub(super) on_outage: Outage,
    pub(super) shadow: bool,
    pub(super) refund_on_5xx: bool,
    /// The most requests an agent may have in flight here, where that is limited.
    pub(super) concurrency: Option<u32>,
}

/// What the requests of one route are charged and how they are answered.
pub(super) struct Plan {
    rules: Box<[BucketRule]>,
    cost: Cost,
    default_cost: Option<Tokens>,
    /// What every request takes, where that is always the same.
    constant: Option<Arc<[Take]>>,
    pub(super) shown: Shown,
    /// One for each bucket: requests that it would have denied, had it been asked.
    would_deny: Box<[Counter]>,
    pub(super) on_outage: Outage,
    pub(super) shadow: bool,
    pub(super) refund_on_5xx: bool,
    pub(super) reserve: bool,
    pub(super) settle_from: Option<SettleFrom>,
}

/// The field that says what a request really cost.
#[derive(Clone, Debug)]
pub(super) struct SettleFrom {
    pub(super) field: HeaderName,
    pub(super) strip: bool,
    /// What a request costs at least whose caller hangs up before the field could come.
    pub(super) unsettled: Option<Tokens>,
}

impl Plan {
    /// Returns the plan of `route` over `buckets`, of which the first is the default.
    pub(super) fn new(
        route: &Route,
        buckets: &[BucketRule],
        defaults: &Defaults,
    ) -> Result<Self, BuildError> {
        let mut rules: Vec<BucketRule> =
            buckets.iter().filter(|rule| rule.is_default).cloned().collect();
        debug_assert_eq!(rules.len(), 1, "the builder marked one default bucket");
        for name in &route.buckets {
            let rule = buckets.iter().find(|rule| rule.name.as_str() == name);
            let rule = rule.ok_or_else(|| BuildError::UnknownBucket {
                path: route.name(),
                bucket: name.clone(),
            })?;
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
        if rules.len() > TAKES_MAX {
            return Err(BuildError::TooManyBuckets { path: route.name(), count: rules.len() });
        }
        if let Kind::Constant(tokens) = route.cost.0 {
            Tokens::new(tokens).map_err(BuildError::Cost)?;
        }
        let default_cost =
            route.default_cost.map(Tokens::new).transpose().map_err(BuildError::Cost)?;
        let unsettled = route.unsettled_cost.map(Tokens::new).transpose();
        let unsettled = unsettled.map_err(BuildError::Cost)?.or(route.cost.most());
        let settle_from = route.settle_from.clone().map(|field| SettleFrom {
            field,
            strip: route.strip_settle_field,
            // A service that holds the reservation itself may settle after the caller is gone.
            unsettled: unsettled.filter(|_| !route.reserve),
        });
        let mut plan = Self {
            shown: Shown::new(&rules, defaults.concurrency),
            would_deny: rules.iter().map(would_deny).collect(),
            rules: rules.into(),
            cost: match settle_from {
                Some(_) => route.cost.clone().until_settled(),
                None => route.cost.clone(),
            },
            default_cost,
            constant: None,
            on_outage: route.on_outage.unwrap_or(defaults.on_outage),
            shadow: route.shadow.unwrap_or(defaults.shadow),
            refund_on_5xx: route.refund_on_5xx.unwrap_or(defaults.refund_on_5xx),
            reserve: route.reserve,
            settle_from,
        };
        if let Kind::Constant(tokens) = plan.cost.0 {
            plan.constant = Some(plan.at(super::cost::clamped(tokens)));
        }
        Ok(plan)
    }

    /// Returns what `request` takes.
    pub(super) fn takes<B>(&self, request: &Request<B>) -> Cow<'_, Arc<[Take]>> {
        match &self.constant {
            Some(takes) => Cow::Borrowed(takes),
            None => Cow::Owned(self.at(self.cost.of(request))),
        }
    }

    fn at(&self, cost: Tokens) -> Arc<[Take]> {
        let take = |rule: &BucketRule| {
            let cost = if rule.is_default { self.default_cost.unwrap_or(cost) } else { cost };
            Take { bucket: rule.clone(), cost }
        };
        self.rules.iter().map(take).collect()
    }

    /// Returns the field of a request that says what it costs, if one does.
    pub(super) fn cost_field(&self) -> Option<&HeaderName> {
        self.cost.field()
    }

    /// Returns true when a take of this bucket is what a reservation settles.
    pub(super) fn settles(&self, rule: &BucketRule) -> bool {
        !(rule.is_default && self.default_cost.is_some())
    }

    /// Returns the buckets that held too little and are not only watched.
    pub(super) fn short<'a>(&'a self, verdict: &'a Verdict) -> Vec<(&'a BucketName, &'a Held)> {
        let held = self.rules.iter().zip(verdict.held());
        let short = held.filter(|(rule, held)| held.short && !rule.shadow);
        short.map(|(rule, held)| (&rule.name, held)).collect()
    }

    /// Counts the buckets that held too little for a request that passes all the same: those that
    /// are only watched, and the others as well when the whole route is.
    pub(super) fn count_would_deny(&self, verdict: &Verdict) {
        let short = verdict.held().zip(&self.would_deny).filter(|(held, _)| held.short);
        short.for_each(|(_, counter)| counter.increment(1));
    }

    /// Returns true when what was taken must be remembered until the answer.
    pub(super) fn remembers(&self) -> bool {
        self.reserve || self.refund_on_5xx || self.settle_from.is_some()
    }
}

fn would_deny(rule: &BucketRule) -> Counter {
    counter!("merit_would_deny_total", "bucket" => rule.name.to_string())
}
