//! `merit buckets`: what requests are charged to, for every node at once.

mod document;

use std::{
    fs,
    io::{self, Read as _},
    path::Path,
};

use http::Method;
use serde_json::Value;

use self::document::{Document, name_of, texts};
use super::{
    OperatorError,
    args::{Buckets, BucketsAction, Look},
    client::Client,
    note, print, say,
    show::{Cell, Hue, Paint, Table, known, number, one_line, visible},
};

const BUCKETS: &str = "/buckets";
/// The longest file that is applied, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// Does what `merit buckets` asks.
pub(super) async fn run(options: Buckets) -> Result<(), OperatorError> {
    let Buckets { action, reach, look } = options;
    let client = Client::new(&reach)?;
    let change = |make: Make, dry_run| Change { make, dry_run, look, file_rev: None };
    match action {
        BucketsAction::List => {
            let (value, document) = get(&client).await?;
            print(look, &value, |paint| listed(&document, paint))
        }
        BucketsAction::Export(export) => {
            let (value, document) = get(&client).await?;
            match export.name {
                None if look.json => say(&one_line(&value)),
                None => say(&document.file()),
                Some(name) => {
                    let bucket = document.buckets.iter().find(|bucket| name_of(bucket) == name);
                    let bucket = bucket.ok_or_else(|| {
                        OperatorError::Failed(format!("there is no bucket `{}`", visible(&name)))
                    })?;
                    say(&one_line(bucket))
                }
            }
        }
        BucketsAction::Set(set) => {
            let dry_run = set.dry_run;
            change(Box::new(move |document| document.set(&set)), dry_run).make(&client).await
        }
        BucketsAction::Add(add) => {
            let dry_run = add.dry_run;
            change(Box::new(move |document| document.add(&add)), dry_run).make(&client).await
        }
        BucketsAction::Remove(remove) => {
            let dry_run = remove.dry_run;
            change(Box::new(move |document| document.remove(&remove.name)), dry_run)
                .make(&client)
                .await
        }
        BucketsAction::Bind(bind) => {
            let dry_run = bind.dry_run;
            change(Box::new(move |document| document.bind(&bind)), dry_run).make(&client).await
        }
        BucketsAction::Unbind(unbind) => {
            let dry_run = unbind.dry_run;
            change(
                Box::new(move |document| document.unbind(&unbind.path, &unbind.methods)),
                dry_run,
            )
            .make(&client)
            .await
        }
        BucketsAction::Apply(apply) => {
            let (make, file_rev) = applying(read_file(&apply.file)?)?;
            Change { make, dry_run: apply.dry_run, look, file_rev }.make(&client).await
        }
        BucketsAction::Clear => {
            let value = client.send(Method::DELETE, BUCKETS, None).await?;
            let value = if value.is_null() { client.get(BUCKETS).await? } else { value };
            print(look, &value, |_| {
                "every node goes back to what its configuration file says".into()
            })
        }
    }
}

type Make = Box<dyn FnOnce(&mut Document) -> Result<(), String> + Send>;

/// A change of the document.
struct Change {
    make: Make,
    dry_run: bool,
    look: Look,
    /// The revision that it must be a change of; without one, of what is there now.
    file_rev: Option<u64>,
}

impl Change {
    async fn make(self, client: &Client) -> Result<(), OperatorError> {
        let (value, old) = get(client).await?;
        let mut new = old.clone();
        (self.make)(&mut new).map_err(OperatorError::Failed)?;
        let there = old.rev.unwrap_or_default();
        if let Some(rev) = self.file_rev.filter(|rev| *rev != there) {
            return Err(OperatorError::Failed(format!(
                "the file is a change of revision {rev}, and there is revision {there} now: somebody \
                 changed the buckets since. Export them anew and make your change there, or take `rev` \
                 out of the file to replace whatever is there"
            )));
        }
        let changes = old.changes(&new);
        if changes.is_empty() {
            note("nothing to change");
            return if self.look.json { say(&one_line(&value)) } else { Ok(()) };
        }
        let changes = changes.join("\n");
        if self.dry_run {
            note("a dry run: nothing was changed");
            return print(self.look, &new.body(there), |_| changes);
        }
        let body = new.body(there);
        let answer = match client.send(Method::PUT, BUCKETS, Some(&body)).await {
            Err(OperatorError::Refused { status: 409, detail }) => {
                return Err(OperatorError::Refused {
                    status: 409,
                    detail: format!(
                        "somebody else changed the buckets at the same moment, and nothing of yours was \
                         written: look at `merit buckets list` and do it again; {detail}"
                    ),
                });
            }
            answer => answer?,
        };
        let answer = if answer.is_null() { client.get(BUCKETS).await? } else { answer };
        let rev = known(answer["rev"].as_u64(), |rev| rev.to_string());
        note(&format!("revision {rev}: every node takes it over within two seconds"));
        print(self.look, &answer, |_| changes)
    }
}

async fn get(client: &Client) -> Result<(Value, Document), OperatorError> {
    let value = client.get(BUCKETS).await?;
    let document = Document::read(&value).map_err(|why| OperatorError::Foreign {
        place: client.place().to_string(),
        why: format!("{BUCKETS}: {why}"),
    })?;
    Ok((value, document))
}

fn read_file(path: &Path) -> Result<Value, OperatorError> {
    let shown = visible(&path.display().to_string());
    let wrong = |why: String| OperatorError::Usage(format!("{shown}: {why}"));
    let mut text = String::new();
    let read = match path.to_str() {
        Some("-") => io::stdin().lock().take(FILE_MAX + 1).read_to_string(&mut text),
        _ => {
            fs::File::open(path).and_then(|file| file.take(FILE_MAX + 1).read_to_string(&mut text))
        }
    };
    read.map_err(|error| wrong(error.to_string()))?;
    if text.len() as u64 > FILE_MAX {
        return Err(wrong(format!("longer than {FILE_MAX} bytes")));
    }
    serde_json::from_str(&text)
        .map_err(|error| wrong(format!("no JSON: {}", visible(&error.to_string()))))
}

/// Returns the change that the file `value` means: everything, or one bucket.
fn applying(value: Value) -> Result<(Make, Option<u64>), OperatorError> {
    if !value["bucket_name"].is_null() {
        let make: Make = Box::new(move |document| document.put(value));
        return Ok((make, None));
    }
    let next = Document::read(&value).map_err(OperatorError::Usage)?;
    let rev = next.rev;
    let make: Make = Box::new(move |document| {
        (document.buckets, document.routes) = (next.buckets, next.routes);
        Ok(())
    });
    Ok((make, rev))
}

fn listed(document: &Document, paint: Paint) -> String {
    let mut buckets =
        Table::new(&["BUCKET", ">RATE/S", ">CAPACITY", "DEFAULT", "SELECTOR", "MORE"]);
    let known_of = ["bucket_name", "refill_rate", "capacity", "default", "key_selector"];
    for bucket in &document.buckets {
        let is_default = bucket["default"].as_bool() == Some(true);
        buckets.row([
            name_of(bucket).into(),
            known(bucket["refill_rate"].as_f64(), number).into(),
            known(bucket["capacity"].as_f64(), number).into(),
            if is_default { "yes" } else { "" }.into(),
            bucket["key_selector"].as_str().unwrap_or_default().into(),
            Cell::new(rest(bucket, &known_of, &["shadow", "earned"]), Hue::Dim),
        ]);
    }
    let mut routes = Table::new(&["PATH", "METHODS", "BUCKETS", ">COST", "MORE"]);
    for route in &document.routes {
        let methods: Vec<&str> = texts(&route["methods"]).collect();
        let charged: Vec<&str> = texts(&route["buckets"]).collect();
        routes.row([
            route["path"].as_str().unwrap_or_default().into(),
            if methods.is_empty() { "all".into() } else { methods.join(",").into() },
            charged.join(",").into(),
            cost(route).into(),
            Cell::new(
                rest(route, &["path", "methods", "buckets", "cost"], &["strip_settle_header"]),
                Hue::Dim,
            ),
        ]);
    }
    let rev = known(document.rev, |rev| rev.to_string());
    let source = match document.source.as_deref() {
        Some("file") => "from the configuration file".to_owned(),
        Some("store") => "from the store, over the configuration file".to_owned(),
        Some(other) => format!("from {}", visible(other)),
        None => "from somewhere".to_owned(),
    };
    let mut text = buckets.text(paint);
    if !document.routes.is_empty() {
        text.push_str(&format!("\n{}", routes.text(paint)));
    }
    format!("{text}\nrevision {rev}, {source}")
}

/// Returns what a request of `route` costs, unless a field of it says so.
fn cost(route: &Value) -> String {
    match (route["cost"].as_f64(), &route["cost_header"]) {
        (Some(cost), _) => number(cost),
        (None, Value::Null) => "1".to_owned(),
        (None, _) => "stated".to_owned(),
    }
}

/// Returns the members of `value` besides `known`, as JSON; null says nothing, nor does false of `off`.
fn rest(value: &Value, known: &[&str], off: &[&str]) -> String {
    let members = value.as_object().into_iter().flatten();
    let told = members.filter(|(key, value)| {
        let is_off = off.contains(&key.as_str()) && **value == Value::Bool(false);
        !known.contains(&key.as_str()) && !value.is_null() && !is_off
    });
    let mut told: Vec<String> = told
        .map(|(key, value)| match value {
            Value::Bool(true) => key.clone(),
            value => format!("{key}={}", one_line(value)),
        })
        .collect();
    told.sort();
    told.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_and_routes_stand_in_tables() {
        let document = Document::read(&serde_json::json!({"rev": 0, "source": "file",
            "buckets": [{"bucket_name": "main", "refill_rate": 20.0, "capacity": 40, "key_selector": "peer.ip", "default": true},
                        {"bucket_name": "writes", "refill_rate": 0.5, "capacity": 10, "key_selector": "peer.ip", "earned": true, "default": false}],
            "routes": [{"path": "/x\u{1b}[2J", "methods": ["POST", "PUT"], "buckets": ["writes"], "cost": 2, "shadow": true},
                       {"path": "/y", "methods": [], "buckets": [], "cost_header": {"max": 9}, "shadow": false, "strip_settle_header": false},
                       {"path": "/z"}]}))
        .unwrap();
        let expected = "\
BUCKET  RATE/S  CAPACITY  DEFAULT  SELECTOR  MORE
main        20        40  yes      peer.ip
writes     0.5        10           peer.ip   earned

PATH         METHODS   BUCKETS    COST  MORE
/x\\u{1b}[2J  POST,PUT  writes        2  shadow
/y           all                stated  cost_header={\"max\":9} shadow=false
/z           all                     1

revision 0, from the configuration file";
        assert_eq!(listed(&document, Paint(false)), expected);
    }
}
