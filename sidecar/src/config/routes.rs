//! `[[bucket]]`, `[[route]]` and the admission keys of `[gateway]`: what becomes of them in the layer.

use figment::value::Value;
use http::{HeaderName, Method};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tower_merit::{
    AdmissionLayer, AgentId, Bucket, BuildError, Cost, MemoryStore, Outage, Route, Spend,
    admission::AdmissionBuilder,
    bucket::{BucketName, CAPACITY_MAX},
    identity::ExtensionIdentity,
    store::TAKES_MAX,
};

use super::{BucketConfig, Config, fault, with_cause};
use crate::{
    gateway::{Charged, LIMITS_PAGE, Price},
    rls,
};

/// `[[route]]`: requests that are charged otherwise than by the default bucket alone. The first
/// whose path and method match decides; the default bucket is charged as well.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    /// What the path must be: `*` is one segment, `/*` at the end is whatever follows.
    pub path: String,
    /// What the method must be; any unless named. `GET` means `HEAD` as well.
    #[serde(default)]
    pub methods: Vec<String>,
    /// Names of the buckets that are charged beside the default one.
    #[serde(default)]
    pub buckets: Vec<String>,
    /// Tokens that a request costs in every bucket; 1 unless it or `cost_header` is set, 0 only looks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<u64>,
    /// The field of the request that states what it costs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_header: Option<CostHeader>,
    /// Tokens that a request costs in the default bucket, when that is something else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_cost: Option<u64>,
    /// What happens to these requests while Redis does not answer; as `[store]` says unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_outage: Option<Outage>,
    /// Whether requests pass that are denied or of which too many are in flight; as `[gateway]` says
    /// unless set. Callers must identify themselves all the same, and bans hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow: Option<bool>,
    /// Whether a request that the upstream fails (5xx, or no answer) gets its tokens back; as
    /// `[gateway]` says unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refund_on_5xx: Option<bool>,
    /// The field of the upstream's answer, or of its trailers, that says what the request really cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settle_header: Option<String>,
    /// Tokens that a request costs at least whose caller hangs up before that field could come; the
    /// `max` of `cost_header` unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unsettled_cost: Option<u64>,
    /// Whether that field is taken out of the answer; no, because the upstream has sent it.
    #[serde(default)]
    pub strip_settle_header: bool,
}

/// `cost_header`: a field that states a cost, within bounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CostHeader {
    /// The field's name.
    pub name: String,
    /// What a request costs at least, and without the field unless there is a `settle_header`;
    /// default 1.
    #[serde(default = "one")]
    pub min: u64,
    /// What a request costs at most, and with a field that is no number; with a `settle_header` also
    /// without the field.
    pub max: u64,
}

fn one() -> u64 {
    1
}

/// Tells `fault` of a cost that no bucket could hold.
fn within(key: &str, tokens: u64, fault: &mut impl FnMut(String)) -> bool {
    if tokens > CAPACITY_MAX {
        fault(format!("{key}: must be at most {CAPACITY_MAX} tokens, is {tokens}"));
    }
    tokens <= CAPACITY_MAX
}

impl CostHeader {
    fn cost(&self, fault: &mut impl FnMut(String)) -> Option<Cost> {
        let Self { name, min, max } = self;
        let mut fits = within("cost_header.max", *max, fault);
        if min > max {
            fault(format!("cost_header.min: must be at most cost_header.max ({max}), is {min}"));
            fits = false;
        }
        if HeaderName::from_bytes(name.as_bytes()).is_err() {
            fault(format!("cost_header.name: must be letters, digits and dashes, is {name:?}"));
            fits = false;
        }
        fits.then(|| Cost::from_header(name, *min, *max).expect("checked one by one"))
    }
}

impl Config {
    /// Returns `builder` with all that the configuration says of admission: buckets, routes, policy
    /// in an outage, who is allowed, what callers are told.
    ///
    /// # Panics
    ///
    /// When the configuration was not validated.
    pub fn admission<S: Spend, I>(
        &self,
        builder: AdmissionBuilder<S, I>,
    ) -> AdmissionBuilder<S, I> {
        let gateway = &self.gateway;
        let allow = gateway.allow.iter().map(|agent| AgentId::new(agent).expect("validated"));
        let mut builder = self
            .layer_buckets()
            .into_iter()
            .fold(builder, AdmissionBuilder::bucket)
            .on_outage(self.store.on_outage)
            .expected_nodes(self.store.expected_nodes)
            .shadow(gateway.shadow)
            .refund_on_5xx(gateway.refund_on_5xx)
            .allow(allow)
            .rate_limit_headers(gateway.rate_limit_headers)
            .x_rate_limit_headers(gateway.x_rate_limit_headers)
            .expose_headers(gateway.expose_headers)
            .retry_jitter(gateway.retry_jitter);
        if let Some(requests) = gateway.concurrency_per_agent {
            builder = builder.concurrency_per_agent(requests);
        }
        if self.gateway.limits_page && !gateway.shadow {
            builder = builder.limits_page(LIMITS_PAGE);
        }
        self.layer_routes().into_iter().fold(builder, AdmissionBuilder::route)
    }

    /// Returns the buckets as the layer takes them.
    #[must_use]
    pub fn layer_buckets(&self) -> Vec<Bucket> {
        self.bucket.iter().map(BucketConfig::bucket).collect()
    }

    /// Returns the routes as the layer takes them.
    ///
    /// # Panics
    ///
    /// When the configuration was not validated.
    #[must_use]
    pub fn layer_routes(&self) -> Vec<Route> {
        let route = |route: &RouteConfig| route.route(|fault| unreachable!("validated: {fault}"));
        self.route.iter().map(route).collect()
    }

    /// Returns `builder` with all that the configuration says of admission that is asked for by proxies. Nothing is
    /// learned there of a request's end, so nothing is settled (what is reserved stands), given back, or counted while
    /// it is in flight.
    /// `X-RateLimit-*` are written whatever callers are to see.
    ///
    /// # Panics
    ///
    /// When the configuration was not validated.
    pub fn rls_admission<S: Spend, I>(
        &self,
        builder: AdmissionBuilder<S, I>,
    ) -> AdmissionBuilder<S, I> {
        let mut plain = self.clone();
        plain.route = Vec::new();
        plain.gateway.concurrency_per_agent = None;
        plain.gateway.limits_page = false;
        plain.gateway.refund_on_5xx = false;
        plain.gateway.x_rate_limit_headers = true;
        let builder = plain.admission(builder).cost(rls::cost(1));
        self.rls_routes().into_iter().fold(builder, AdmissionBuilder::route)
    }

    /// Returns the routes as [`Config::rls_admission`] has them: a cost counts once for each hit, unless an
    /// entry states it.
    ///
    /// # Panics
    ///
    /// When the configuration was not validated.
    #[must_use]
    pub fn rls_routes(&self) -> Vec<Route> {
        let by_hits = |(config, route): (&RouteConfig, Route)| match config.cost_header {
            Some(_) => route,
            None => route.cost(rls::cost(config.cost.unwrap_or(1))),
        };
        self.route.iter().zip(self.layer_routes()).map(by_hits).collect()
    }

    /// Returns what requests are charged, as callers read it.
    #[must_use]
    pub fn charges(&self) -> Vec<Charged> {
        let of = |route: &RouteConfig| Charged {
            path: route.path.clone(),
            methods: route.methods.clone(),
            buckets: route.buckets.clone(),
            cost: match &route.cost_header {
                Some(CostHeader { name, min, max }) => {
                    Price::Stated { header: name.clone(), min: *min, max: *max }
                }
                None => Price::Tokens(route.cost.unwrap_or(1)),
            },
            default_cost: route.default_cost,
        };
        self.route.iter().map(of).collect()
    }

    /// Returns a sound bucket for every name that can be one, and at least one.
    fn stand_ins(&self) -> Vec<Bucket> {
        let mut names: Vec<&str> = Vec::new();
        for bucket in &self.bucket {
            let name = bucket.bucket_name.as_str();
            if BucketName::new(name).is_ok() && name != "concurrency" && !names.contains(&name) {
                names.push(name);
            }
        }
        if names.is_empty() {
            names.push("default");
        }
        names.into_iter().map(|name| Bucket::per_second(1.0).named(name)).collect()
    }

    /// Adds every fault of `[[route]]`. Buckets that are faulty themselves were named before.
    pub(super) fn validate_routes(&self, faults: &mut Vec<String>) {
        let trial = |buckets: Vec<Bucket>| {
            let builder = AdmissionLayer::builder(MemoryStore::with_capacity(1));
            let builder = builder.identity(ExtensionIdentity);
            let builder = buckets.into_iter().fold(builder, AdmissionBuilder::bucket);
            match self.gateway.concurrency_per_agent {
                Some(requests) => builder.concurrency_per_agent(requests),
                None => builder,
            }
        };
        let stand_ins = match trial(self.layer_buckets()).build() {
            Ok(_) => None,
            Err(BuildError::NameTaken { bucket }) if bucket == "concurrency" => {
                faults.push(
                    "bucket: `concurrency` is what gateway.concurrency_per_agent is called: name the bucket otherwise"
                        .to_owned(),
                );
                Some(self.stand_ins())
            }
            // Said of the buckets themselves; routes are tried with sound ones of the same names.
            Err(_) => Some(self.stand_ins()),
        };
        let trial = || trial(stand_ins.clone().unwrap_or_else(|| self.layer_buckets()));
        for (index, route) in self.route.iter().enumerate() {
            let path = format!("route[{index}]");
            let before = faults.len();
            let built = route.route(|fault| faults.push(format!("{path}.{fault}")));
            // The layer speaks of builders: say it in terms of the file.
            match trial().route(built).build() {
                Ok(_) => {}
                Err(BuildError::Path { path: pattern, problem }) => {
                    faults.push(format!("{path}.path: {pattern:?} {problem}"));
                }
                Err(BuildError::UnknownBucket { bucket, .. }) => faults.push(format!(
                    "{path}.buckets: there is no {bucket:?}: add a [[bucket]] with that bucket_name"
                )),
                Err(BuildError::TooManyBuckets { count, .. }) => faults.push(format!(
                    "{path}.buckets: at most {TAKES_MAX} are taken together, the default one \
                     included, there are {count}"
                )),
                Err(_) if faults.len() > before => {}
                Err(error) => faults.push(format!("{path}: {}", with_cause(&error))),
            }
        }
        let most = tower_merit::admission::ROUTES_MAX;
        if self.route.len() > most {
            faults.push(format!("route: at most {most} are tried, there are {}", self.route.len()));
        }
    }
}

impl BucketConfig {
    /// Reads the list at `bucket`, and tells every fault.
    pub(super) fn list(found: Value, faults: &mut Vec<String>) -> Vec<Self> {
        let stand_in = |index| json!({"bucket_name": format!("bucket-{index}"), "refill_rate": 1, "capacity": 1});
        fault::tables(found, "bucket", stand_in, faults)
    }

    fn bucket(&self) -> Bucket {
        let bucket = Bucket::per_second(self.refill_rate)
            .capacity(self.capacity)
            .named(&self.bucket_name)
            .shadow(self.shadow);
        if self.default { bucket.default_bucket() } else { bucket }
    }
}

impl RouteConfig {
    /// Reads the list at `route`, and tells every fault.
    pub(super) fn list(found: Value, faults: &mut Vec<String>) -> Vec<Self> {
        fault::tables(found, "route", |_| json!({"path": "/"}), faults)
    }

    /// Returns the route without what cannot be, and tells `fault` of every such thing.
    fn route(&self, mut fault: impl FnMut(String)) -> Route {
        let mut route = Route::path(&self.path).strip_settle_field(self.strip_settle_header);
        let methods = self.methods.iter().filter_map(|name| {
            // Methods are case-sensitive (RFC 9110 section 9.1), and `get` is none.
            let known = Method::from_bytes(name.as_bytes()).ok();
            let known = known.filter(|_| !name.bytes().any(|byte| byte.is_ascii_lowercase()));
            if known.is_none() {
                fault(format!("methods: {name:?} is no method; write them like `POST`"));
            }
            known
        });
        route = route.methods(methods.collect::<Vec<_>>());
        for bucket in &self.buckets {
            route = route.bucket(bucket);
        }
        match (self.cost, &self.cost_header) {
            (Some(_), Some(_)) => fault("cost: set it or cost_header, one of them".to_owned()),
            (Some(tokens), None) => {
                if within("cost", tokens, &mut fault) {
                    route = route.cost(tokens);
                }
            }
            (None, Some(header)) => {
                if let Some(cost) = header.cost(&mut fault) {
                    route = route.cost(cost);
                }
            }
            (None, None) => {}
        }
        if let Some(tokens) = self.default_cost
            && within("default_cost", tokens, &mut fault)
        {
            route = route.default_cost(tokens);
        }
        if let Some(tokens) = self.unsettled_cost
            && within("unsettled_cost", tokens, &mut fault)
        {
            route = route.unsettled_cost(tokens);
        }
        if let Some(outage) = self.on_outage {
            route = route.on_outage(outage);
        }
        if let Some(on) = self.shadow {
            route = route.shadow(on);
        }
        if let Some(on) = self.refund_on_5xx {
            route = route.refund_on_5xx(on);
        }
        match self.settle_header.as_deref().map(|name| HeaderName::from_bytes(name.as_bytes())) {
            Some(Ok(field)) => route = route.settle_from(field),
            Some(Err(_)) => fault(format!(
                "settle_header: must be letters, digits and dashes, is {:?}",
                self.settle_header.as_deref().unwrap_or_default()
            )),
            None if self.unsettled_cost.is_some() => {
                fault("unsettled_cost: there is no settle_header that could be missing".to_owned());
            }
            None if self.strip_settle_header => {
                fault("strip_settle_header: there is no settle_header to strip".to_owned());
            }
            None => {}
        }
        route
    }
}
