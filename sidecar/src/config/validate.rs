//! What is wrong with a configuration, and what is legal and odd: every fault with its full path.

use std::{collections::BTreeSet, time::Duration};

use tower_merit::{
    Outage,
    bucket::{BucketName, CAPACITY_MAX, Limits, REFILL_RATE_MAX},
    store::leased::{LEASE_TERM_MAX, LEASE_TERM_MIN},
};

use super::{Config, Role, StoreKind, StoreMode};
use crate::{
    bus::{BusConfig, duration},
    rls::Identified,
};

impl Config {
    pub(super) fn validate(&self, role: Role, faults: &mut Vec<String>) {
        // A bridge limits nobody: it needs neither buckets nor a store.
        if role != Role::Feed {
            self.validate_buckets(faults);
            self.validate_routes(faults);
            self.validate_store(role, faults);
        }
        self.bus.validate("bus", faults);
        self.policy.validate("policy", faults);
        self.tuner.validate("tuner", faults);
        self.personalize.validate("personalize", faults);
        self.ingest.validate("ingest", faults);
        let feed = self.feed.as_ref().filter(|_| role.bridges());
        if let Some(feed) = feed {
            feed.validate("feed", faults);
        }
        let publishes = feed.is_some_and(|feed| feed.publish);
        self.gateway.validate("gateway", faults);
        self.rls.validate("rls", faults);
        self.metrics.validate("metrics", faults);
        self.admin.validate("admin", faults);
        self.trace.validate("trace", faults);
        let guards = role.guards() && self.gateway.listen.is_some();
        let rates = (role.ingests() && self.ingest.listens())
            || (guards && self.gateway.tee_ratings.is_some());
        let answers = role.answers() && self.rls.listen.is_some();
        let asks = guards || (answers && self.rls.identify == Identified::Request);
        if asks || rates {
            self.validate_identity(rates, asks, faults);
        }
        if (guards || answers || rates || publishes)
            && let Err(fault) = self.ratings.receipt_keys()
        {
            faults.push(fault);
        }
        if role == Role::Feed && self.feed.is_none() {
            faults.push(
                "feed: must be there for role `feed`: set url, and forward_to or publish"
                    .to_owned(),
            );
        }
        if role == Role::Ingest && !self.ingest.listens() {
            faults
                .push("ingest.listen: it or grpc_listen must be set for role `ingest`".to_owned());
        }
        if role == Role::Gateway && self.gateway.listen.is_none() {
            faults.push("gateway.listen: must be set for role `gateway`".to_owned());
        }
        if role == Role::Rls && self.rls.listen.is_none() {
            faults.push("rls.listen: must be set for role `rls`".to_owned());
        }
        let needs_bus = match role {
            Role::All | Role::Rls => false,
            // What it scores by comes over the bus.
            Role::Gateway => self.personalize.enabled && guards,
            Role::Feed => publishes,
            _ => true,
        };
        if needs_bus && matches!(self.bus, BusConfig::InProcess(_)) {
            faults.push(format!(
                "bus.kind: `in-process` carries nothing between processes: role `{}` needs another bus",
                format!("{role:?}").to_lowercase()
            ));
        }
    }

    pub(super) fn validate_buckets(&self, faults: &mut Vec<String>) {
        let mut names = BTreeSet::new();
        for (index, bucket) in self.bucket.iter().enumerate() {
            let path = format!("bucket[{index}]");
            if let Err(error) = BucketName::new(&bucket.bucket_name) {
                faults.push(format!("{path}.bucket_name: {error}"));
            }
            if !names.insert(&bucket.bucket_name) {
                faults.push(format!("{path}.bucket_name: {:?} stands twice", bucket.bucket_name));
            }
            if bucket.earned && bucket.default {
                faults.push(format!(
                    "{path}.earned: ratings move the default bucket anyway: remove it, or name \
                     another bucket the default"
                ));
            }
            if bucket.capacity > CAPACITY_MAX {
                let found = bucket.capacity;
                faults.push(format!("{path}.capacity: must be at most {CAPACITY_MAX}, is {found}"));
            } else if Limits::per_second(bucket.refill_rate, bucket.capacity).is_err() {
                let found = bucket.refill_rate;
                faults.push(format!(
                    "{path}.refill_rate: must be 0.000001 to {REFILL_RATE_MAX} tokens per second, is \
                     {found}"
                ));
            } else if bucket.refill_rate < 0.000_001 || bucket.capacity == 0 {
                faults.push(format!(
                    "{path}: would let nothing pass: refill_rate and capacity must be above 0"
                ));
            }
        }
        match self.bucket.iter().filter(|bucket| bucket.default).count() {
            _ if self.bucket.is_empty() => {
                faults.push("bucket: at least one [[bucket]] or bucket_files is needed".to_owned());
            }
            1 => {}
            count => {
                faults
                    .push(format!("bucket: exactly one must have `default = true`, {count} have"));
            }
        }
        self.validate_selectors(faults);
    }

    fn validate_store(&self, role: Role, faults: &mut Vec<String>) {
        let store = &self.store;
        match store.kind {
            StoreKind::Redis => {
                if let Err(found) = self.redis() {
                    faults.extend(found);
                }
            }
            StoreKind::Memory if role != Role::All => faults.push(format!(
                "store.kind: `memory` is shared by nobody: role `{}` needs `redis`",
                format!("{role:?}").to_lowercase()
            )),
            StoreKind::Memory => {}
        }
        let (least, most) = (Duration::from_millis(1), Duration::from_secs(10));
        if !(least..=most).contains(&store.timeout) {
            let found = duration::format(store.timeout);
            faults.push(format!("store.timeout: must be 1ms to 10s, is {found}"));
        }
        if store.kind == StoreKind::Memory && store.mode == StoreMode::Leased {
            faults.push(
                "store.mode: `leased` saves calls to `redis`: `memory` needs none, use `exact`"
                    .to_owned(),
            );
        }
        if !(LEASE_TERM_MIN..=LEASE_TERM_MAX).contains(&store.lease_term) {
            let found = duration::format(store.lease_term);
            faults.push(format!("store.lease_term: must be 10ms to 1s, is {found}"));
        }
        if store.lease_ahead_max == 0 {
            faults.push("store.lease_ahead_max: must be at least 1, is 0".to_owned());
        }
        if store.lease_agents_max == 0 {
            faults.push("store.lease_agents_max: must be at least 1, is 0".to_owned());
        }
    }

    /// Returns what is legal and odd in a process of `role`.
    #[must_use]
    pub fn warnings(&self, role: Role) -> Vec<String> {
        let mut warnings = Vec::new();
        if role != Role::Feed {
            self.warn_of_limits(role, &mut warnings);
        }
        if let Some(feed) = self.feed.as_ref().filter(|_| role.bridges()) {
            feed.warn("feed", &mut warnings);
        }
        if self.metrics.listen.is_none() {
            warnings.push("metrics.listen: not set: nobody can see how it is doing".to_owned());
        }
        warnings
    }

    fn warn_of_limits(&self, role: Role, warnings: &mut Vec<String>) {
        let mut warn = |on: bool, text: &str| {
            if on {
                warnings.push(text.to_owned());
            }
        };
        warn(
            self.store.kind == StoreKind::Memory,
            "store.kind: `memory`: limits and levels are lost when the process ends",
        );
        warn(
            role != Role::Rls && matches!(self.bus, BusConfig::InProcess(_)),
            "bus.kind: `in-process`: ratings on their way are lost when the process ends (at most once)",
        );
        warn(
            self.store.on_outage == Outage::Open,
            "store.on_outage: `open`: nobody is limited while Redis does not answer",
        );
        warn(
            self.gateway.shadow,
            "gateway.shadow: nobody is limited, refused or asked for a token: everything passes",
        );
        let named =
            |name: &str| self.route.iter().any(|route| route.buckets.iter().any(|b| b == name));
        for bucket in self.bucket.iter().filter(|bucket| !bucket.default) {
            if !named(&bucket.bucket_name) {
                let name = &bucket.bucket_name;
                warn(
                    true,
                    &format!("bucket: `{name}`: no [[route]] names it: it is never charged"),
                );
            }
        }
        let start = self.default_limits().refill().tokens();
        warn(
            !(self.policy.r_min..=self.policy.r_max).contains(&start),
            "policy: the default bucket's refill_rate lies outside [r_min, r_max]: an agent jumps there with its first rating",
        );
        warn(
            role != Role::Rls
                && !self.ingest.listens()
                && self.gateway.tee_ratings.is_none()
                && !self.feed.as_ref().is_some_and(|feed| feed.publish),
            "ingest.listen: not set, nor gateway.tee_ratings, nor feed.publish: no rating comes in here",
        );
    }
}
