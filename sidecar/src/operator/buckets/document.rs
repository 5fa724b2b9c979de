//! All buckets and routes as one document, and the changes an operator makes to it; pure.
//!
//! It stays the JSON that was read: what this version does not know of a bucket or a route is kept.

use std::collections::BTreeSet;

use serde_json::{Map, Number, Value, json};

use crate::operator::{
    args::{AddBucket, Bind, SetBucket},
    show::{number, one_line, visible},
};

/// Buckets, routes and their revision.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Document {
    /// The revision, when it is known.
    pub(super) rev: Option<u64>,
    /// Where it stands: `file` or `store`.
    pub(super) source: Option<String>,
    pub(super) buckets: Vec<Value>,
    pub(super) routes: Vec<Value>,
}

impl Document {
    /// Reads what `GET /buckets` answers, or a file that holds the same.
    ///
    /// # Errors
    ///
    /// With what is not as it should be.
    pub(super) fn read(value: &Value) -> Result<Self, String> {
        let list = |name: &str| match &value[name] {
            Value::Array(list) if list.iter().all(Value::is_object) => Ok(list.clone()),
            Value::Null => Ok(Vec::new()),
            _ => Err(format!("{name}: must be a list of objects")),
        };
        if !value.is_object() {
            return Err("must be an object with `buckets` and `routes`".to_owned());
        }
        if value["buckets"].is_null() {
            return Err("buckets: must be a list of objects, is missing".to_owned());
        }
        let rev = match &value["rev"] {
            Value::Null => None,
            rev => Some(rev.as_u64().ok_or("rev: must be a whole number")?),
        };
        let source = value["source"].as_str().map(str::to_owned);
        let (buckets, routes) = (list("buckets")?, list("routes")?);
        Ok(Self {
            rev,
            source,
            buckets: buckets.into_iter().map(canonical).collect(),
            routes: routes.into_iter().map(canonical).collect(),
        })
    }

    /// Returns what `PUT /buckets` takes: everything, as a change of `rev`.
    pub(super) fn body(&self, rev: u64) -> Value {
        json!({"rev": rev, "buckets": self.buckets, "routes": self.routes})
    }

    /// Returns what `export` prints, in the order in which people read it.
    pub(super) fn file(&self) -> String {
        let pretty = |list: &[Value]| -> String {
            let lines: Vec<String> =
                list.iter().map(|one| format!("    {}", one_line(one))).collect();
            match lines.is_empty() {
                true => "[]".to_owned(),
                false => format!("[\n{}\n  ]", lines.join(",\n")),
            }
        };
        let rev = self.rev.map_or_else(String::new, |rev| format!("  \"rev\": {rev},\n"));
        let (buckets, routes) = (pretty(&self.buckets), pretty(&self.routes));
        format!("{{\n{rev}  \"buckets\": {buckets},\n  \"routes\": {routes}\n}}")
    }

    fn names(&self) -> String {
        let names: Vec<String> =
            self.buckets.iter().map(|bucket| visible(name_of(bucket))).collect();
        names.join(", ")
    }

    fn missing(&self, name: &str) -> String {
        format!("there is no bucket `{}`; there are: {}", visible(name), self.names())
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.buckets.iter().position(|bucket| name_of(bucket) == name)
    }

    /// Changes a bucket's limits.
    ///
    /// # Errors
    ///
    /// When there is none of that name.
    pub(super) fn set(&mut self, set: &SetBucket) -> Result<(), String> {
        let at = self.position(&set.name).ok_or_else(|| self.missing(&set.name))?;
        let bucket = &mut self.buckets[at];
        if let Some(rate) = set.rate {
            bucket["refill_rate"] = short(rate);
        }
        if let Some(capacity) = set.capacity {
            bucket["capacity"] = capacity.into();
        }
        Ok(())
    }

    /// Adds a bucket, which takes its agents from where the default one does.
    ///
    /// # Errors
    ///
    /// When there is one of that name.
    pub(super) fn add(&mut self, add: &AddBucket) -> Result<(), String> {
        if self.position(&add.name).is_some() {
            let name = visible(&add.name);
            return Err(format!(
                "there is a bucket `{name}` already; `merit buckets set` changes it"
            ));
        }
        let mut bucket = json!({
            "bucket_name": add.name,
            "refill_rate": short(add.rate),
            "capacity": add.capacity,
        });
        if add.earned {
            bucket["earned"] = true.into();
        }
        // All buckets share one selector.
        let mut selectors = self.buckets.iter().map(|bucket| &bucket["key_selector"]);
        if let Some(selector) = selectors.find(|selector| selector.is_string()) {
            bucket["key_selector"] = selector.clone();
        }
        self.buckets.push(bucket);
        Ok(())
    }

    /// Puts `bucket`, as a bucket file has it, in the place of the one of its name, or behind all others.
    ///
    /// # Errors
    ///
    /// When it has no name.
    pub(super) fn put(&mut self, bucket: Value) -> Result<(), String> {
        let bucket = canonical(bucket);
        if name_of(&bucket).is_empty() {
            return Err("bucket_name: must be a text".to_owned());
        }
        match self.position(name_of(&bucket)) {
            Some(at) => self.buckets[at] = bucket,
            None => self.buckets.push(bucket),
        }
        Ok(())
    }

    /// Removes a bucket.
    ///
    /// # Errors
    ///
    /// When there is none of that name, or a route charges it.
    pub(super) fn remove(&mut self, name: &str) -> Result<(), String> {
        let at = self.position(name).ok_or_else(|| self.missing(name))?;
        let charging: Vec<String> = self
            .routes
            .iter()
            .filter(|route| texts(&route["buckets"]).any(|bucket| bucket == name))
            .map(|route| format!("`{}`", route_name(route)))
            .collect();
        if !charging.is_empty() {
            let (name, routes) = (visible(name), charging.join(", "));
            return Err(format!("`{name}` is charged by {routes}; `merit buckets unbind` first"));
        }
        self.buckets.remove(at);
        Ok(())
    }

    /// Makes the route of a path and methods charge buckets; a new one goes behind all others, or to the front.
    ///
    /// # Errors
    ///
    /// When there is no bucket of a name.
    pub(super) fn bind(&mut self, bind: &Bind) -> Result<(), String> {
        if let Some(name) = bind.buckets.iter().find(|name| self.position(name).is_none()) {
            return Err(self.missing(name));
        }
        let at = self.routes.iter().position(|route| is_of(route, &bind.path, &bind.methods));
        let mut route = match at {
            Some(at) => self.routes[at].clone(),
            None => json!({"path": bind.path, "methods": bind.methods}),
        };
        route["buckets"] = json!(bind.buckets);
        // A route whose cost stands in a field has none of its own, and is not given one.
        if let Some(cost) = bind.cost {
            route["cost"] = cost.into();
        }
        match (at, bind.first) {
            (Some(at), false) => self.routes[at] = route,
            (Some(at), true) => {
                self.routes.remove(at);
                self.routes.insert(0, route);
            }
            (None, true) => self.routes.insert(0, route),
            (None, false) => self.routes.push(route),
        }
        Ok(())
    }

    /// Removes the route of a path and, when they are given, methods.
    ///
    /// # Errors
    ///
    /// When there is none, or more than one.
    pub(super) fn unbind(&mut self, path: &str, methods: &[String]) -> Result<(), String> {
        let of_path = |route: &&Value| route["path"].as_str() == Some(path);
        let meant =
            |route: &Value| of_path(&route) && (methods.is_empty() || is_of(route, path, methods));
        match self.routes.iter().filter(|route| meant(route)).count() {
            1 => {
                self.routes.retain(|route| !meant(route));
                Ok(())
            }
            0 => {
                let names: Vec<String> = self.routes.iter().map(route_name).collect();
                let wish = json!({"path": path, "methods": methods});
                Err(format!(
                    "there is no route `{}`; there are: {}",
                    route_name(&wish),
                    names.join(", ")
                ))
            }
            _ => {
                let names: Vec<String> =
                    self.routes.iter().filter(of_path).map(route_name).collect();
                Err(format!("--methods: say which of the routes is meant: {}", names.join(", ")))
            }
        }
    }

    /// Returns what is different in `next`, a line each.
    pub(super) fn changes(&self, next: &Self) -> Vec<String> {
        let buckets = named_changes("bucket", &self.buckets, &next.buckets, &|bucket| {
            visible(name_of(bucket))
        });
        let routes = named_changes("route", &self.routes, &next.routes, &route_name);
        let mut changes = [buckets, routes].concat();
        let order = |document: &Self| document.routes.iter().map(route_name).collect::<Vec<_>>();
        if changes.is_empty() && order(self) != order(next) {
            changes.push(format!("routes in the order {}", order(next).join(", ")));
        }
        changes
    }
}

type NameOf<'a> = &'a dyn Fn(&Value) -> String;

fn named_changes(kind: &str, old: &[Value], new: &[Value], name: NameOf<'_>) -> Vec<String> {
    let find = |list: &[Value], wanted: &str| list.iter().find(|one| name(one) == wanted).cloned();
    let mut changes = Vec::new();
    for one in old {
        let name = name(one);
        if find(new, &name).is_none() {
            changes.push(format!("- {kind} {name}"));
        }
    }
    for one in new {
        let name = name(one);
        match find(old, &name) {
            None => changes.push(format!("+ {kind} {name}: {}", members(one))),
            Some(before) if before != *one => {
                changes.push(format!("~ {kind} {name}: {}", member_changes(&before, one)));
            }
            Some(_) => {}
        }
    }
    changes
}

fn shown(value: &Value) -> String {
    value.as_f64().map_or_else(|| one_line(value), number)
}

fn members(value: &Value) -> String {
    let named = ["bucket_name", "path", "methods"];
    let members = value.as_object().into_iter().flatten();
    let told = members.filter(|(key, _)| !named.contains(&key.as_str()));
    let mut told: Vec<String> =
        told.map(|(key, value)| format!("{} {}", visible(key), shown(value))).collect();
    told.sort();
    told.join(", ")
}

fn member_changes(old: &Value, new: &Value) -> String {
    let keys = [old, new].into_iter().filter_map(Value::as_object).flat_map(Map::keys);
    let keys: BTreeSet<&String> = keys.collect();
    let changed = keys.into_iter().filter(|key| old[key.as_str()] != new[key.as_str()]);
    let told: Vec<String> = changed
        .map(|key| {
            let (old, new) = (shown(&old[key.as_str()]), shown(&new[key.as_str()]));
            format!("{} {old} -> {new}", visible(key))
        })
        .collect();
    told.join(", ")
}

/// Returns `number` as whole where it is.
fn short(number: f64) -> Value {
    canonical(Value::Number(Number::from_f64(number).expect("the command line takes finite ones")))
}

/// Returns `value` with `20.0` as `20`, so that what means the same is the same.
fn canonical(value: Value) -> Value {
    match value {
        Value::Number(number) => {
            // Exact below 2^53, and nothing here is larger.
            let whole = number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() < 9e15);
            let whole = whole.and_then(|float| format!("{float:.0}").parse::<i64>().ok());
            whole.map_or(Value::Number(number), Into::into)
        }
        Value::Array(list) => list.into_iter().map(canonical).collect(),
        Value::Object(members) => {
            members.into_iter().map(|(key, value)| (key, canonical(value))).collect()
        }
        other => other,
    }
}

pub(super) fn name_of(bucket: &Value) -> &str {
    bucket["bucket_name"].as_str().unwrap_or_default()
}

pub(super) fn texts(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// Returns whether `route` has this path and these methods, in any order.
fn is_of(route: &Value, path: &str, methods: &[String]) -> bool {
    let own: BTreeSet<String> = texts(&route["methods"]).map(str::to_ascii_uppercase).collect();
    let asked: BTreeSet<String> = methods.iter().cloned().collect();
    route["path"].as_str() == Some(path) && own == asked
}

fn route_name(route: &Value) -> String {
    let methods: Vec<&str> = texts(&route["methods"]).collect();
    let path = visible(route["path"].as_str().unwrap_or_default());
    match methods.is_empty() {
        true => path,
        false => format!("{} {path}", visible(&methods.join(","))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document() -> Document {
        let value = json!({"rev": 3, "source": "store",
            "buckets": [
                {"bucket_name": "main", "refill_rate": 20.0, "capacity": 40, "key_selector": "jwt.claims.agent_id", "default": true},
                {"bucket_name": "writes", "refill_rate": 2, "capacity": 10, "key_selector": "jwt.claims.agent_id", "later": [1]}],
            "routes": [{"path": "/v1/orders/*", "methods": ["POST"], "buckets": ["writes"], "cost": 1, "settle_header": "x"},
                       {"path": "/*", "methods": [], "buckets": [], "cost": 1}]});
        Document::read(&value).unwrap()
    }

    fn change(make: impl FnOnce(&mut Document) -> Result<(), String>) -> Vec<String> {
        let (old, mut new) = (document(), document());
        make(&mut new).unwrap();
        old.changes(&new)
    }

    fn bind(path: &str, methods: &[&str], bucket: &str, cost: Option<u64>, first: bool) -> Bind {
        let methods = methods.iter().map(ToString::to_string).collect();
        let buckets = vec![bucket.to_owned()];
        Bind { path: path.to_owned(), methods, buckets, cost, first, dry_run: false }
    }

    #[test]
    fn limits_change_and_what_is_not_known_stays() {
        let set =
            SetBucket { name: "writes".into(), rate: Some(5.0), capacity: None, dry_run: false };
        let mut document = document();
        document.set(&set).unwrap();
        assert_eq!(document.buckets[1]["refill_rate"], json!(5));
        assert_eq!(document.buckets[1]["later"], json!([1]));
        assert_eq!(document.body(3)["rev"], 3);
        assert_eq!(change(|document| document.set(&set)), ["~ bucket writes: refill_rate 2 -> 5"]);
        let none = SetBucket { name: "rites\u{1b}".into(), ..set };
        let fault = document.set(&none).unwrap_err();
        assert_eq!(fault, "there is no bucket `rites\\u{1b}`; there are: main, writes");
    }

    #[test]
    fn twenty_is_twenty_however_it_is_written() {
        let set =
            SetBucket { name: "main".into(), rate: Some(20.0), capacity: Some(40), dry_run: false };
        assert_eq!(change(|document| document.set(&set)), [""; 0]);
    }

    #[test]
    fn a_new_bucket_takes_the_selector_that_all_share() {
        let add = AddBucket {
            name: "reports".into(),
            rate: 0.5,
            capacity: 5,
            earned: true,
            dry_run: false,
        };
        let made = change(|document| document.add(&add));
        let selector = "\"jwt.claims.agent_id\"";
        assert_eq!(
            made,
            [format!(
                "+ bucket reports: capacity 5, earned true, key_selector {selector}, refill_rate 0.5"
            )]
        );
        let again = AddBucket { name: "main".into(), ..add };
        assert!(document().add(&again).unwrap_err().contains("already"));
    }

    #[test]
    fn a_bucket_that_is_charged_is_not_removed() {
        let fault = document().remove("writes").unwrap_err();
        assert!(fault.contains("POST /v1/orders/*") && fault.contains("unbind"), "{fault}");
        let gone = change(|document| {
            document.unbind("/v1/orders/*", &[])?;
            document.remove("writes")
        });
        assert_eq!(gone, ["- bucket writes", "- route POST /v1/orders/*"]);
    }

    #[test]
    fn a_route_is_known_by_its_path_and_methods() {
        let again = bind("/v1/orders/*", &["POST"], "main", None, false);
        let mut changed = document();
        changed.bind(&again).unwrap();
        assert_eq!(changed.routes[0]["settle_header"], "x", "what is not named stays");
        assert_eq!(
            document().changes(&changed),
            [r#"~ route POST /v1/orders/*: buckets ["writes"] -> ["main"]"#]
        );
        let put = bind("/v1/orders/*", &["PUT"], "writes", Some(3), false);
        changed.bind(&put).unwrap();
        assert_eq!((changed.routes.len(), &changed.routes[2]["cost"]), (3, &json!(3)));
        let fault = changed.unbind("/v1/orders/*", &[]).unwrap_err();
        assert!(fault.contains("POST /v1/orders/*, PUT /v1/orders/*"), "{fault}");
        changed.unbind("/v1/orders/*", &["PUT".into()]).unwrap();
        assert!(changed.unbind("/none", &[]).unwrap_err().contains("there is no route `/none`"));
        let none = bind("/x", &[], "none", None, false);
        assert!(changed.bind(&none).unwrap_err().contains("no bucket `none`"));
    }

    #[test]
    fn a_route_can_be_put_before_the_others() {
        let first = bind("/v1/orders/*", &["POST"], "writes", None, false);
        assert_eq!(change(|document| document.bind(&first)), [""; 0]);
        let mut changed = document();
        changed.bind(&bind("/*", &[], "writes", None, true)).unwrap();
        assert_eq!(changed.routes[0]["path"], "/*");
        let mut order = document();
        order.routes.reverse();
        assert_eq!(document().changes(&order), ["routes in the order /*, POST /v1/orders/*"]);
    }

    #[test]
    fn what_is_exported_reads_back_as_it_was() {
        let file: Value = serde_json::from_str(&document().file()).unwrap();
        let read = Document::read(&file).unwrap();
        assert_eq!(read, Document { source: None, ..document() });
        let bare = json!({"buckets": []});
        assert_eq!(Document::read(&bare).unwrap().rev, None);
        for (value, fault) in [
            (json!([]), "must be an object"),
            (json!({"routes": []}), "buckets: "),
            (json!({"buckets": [1]}), "buckets: "),
            (json!({"buckets": [], "rev": -1}), "rev: "),
        ] {
            let found = Document::read(&value).unwrap_err();
            assert!(found.starts_with(fault), "{found}");
        }
    }

    #[test]
    fn a_bucket_file_replaces_its_bucket_or_adds_one() {
        let bucket = json!({"bucket_name": "writes", "refill_rate": 3.0, "capacity": 10});
        let changes = change(|document| document.put(bucket));
        assert_eq!(
            changes,
            [
                r#"~ bucket writes: key_selector "jwt.claims.agent_id" -> null, later [1] -> null, refill_rate 2 -> 3"#
            ]
        );
        let added = change(|document| document.put(json!({"bucket_name": "b", "capacity": 1})));
        assert_eq!(added, ["+ bucket b: capacity 1"]);
        assert!(document().put(json!({"capacity": 1})).is_err());
    }
}
