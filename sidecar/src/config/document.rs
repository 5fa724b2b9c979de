//! Buckets and routes as one document in JSON, that an operator puts in place of the file's while everything
//! runs: read and checked as the file is.
//!
//! `{"form":1,"buckets":[…],"routes":[…]}`; the items are those of `[[bucket]]` and `[[route]]`. A document of
//! another form, or with a key that is not known here, was written by another version and is refused whole.

use figment::value::Value;
use serde_json::json;

use super::{BucketConfig, Config, RouteConfig};

/// The form that this version writes and reads.
const FORM: u64 = 1;

/// Why a document cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DocumentError {
    /// It is no JSON.
    #[error("not JSON: {0}")]
    Json(String),
    /// It is of a form that this version does not know.
    #[error("of a form that this version does not know: update this node, or put the buckets anew")]
    Form,
    /// Everything that is wrong, each with its path.
    #[error("{} fault(s): {}", .0.len(), .0.join("; "))]
    Faults(Vec<String>),
}

impl Config {
    /// Returns buckets and routes as a document, without its form.
    #[must_use]
    pub fn document(&self) -> serde_json::Value {
        json!({"buckets": self.bucket, "routes": self.route})
    }

    /// Returns the text of the document that is stored.
    #[must_use]
    pub fn document_text(&self) -> String {
        json!({"form": FORM, "buckets": self.bucket, "routes": self.route}).to_string()
    }

    /// Returns this configuration with the buckets and routes of a stored document.
    ///
    /// # Errors
    ///
    /// When it cannot be used.
    pub fn with_document_text(&self, text: &str) -> Result<Self, DocumentError> {
        let found: serde_json::Value =
            serde_json::from_str(text).map_err(|error| DocumentError::Json(error.to_string()))?;
        let serde_json::Value::Object(mut found) = found else { return Err(DocumentError::Form) };
        if found.remove("form").as_ref().and_then(serde_json::Value::as_u64) != Some(FORM) {
            return Err(DocumentError::Form);
        }
        self.with_document(&found.into()).map_err(DocumentError::Faults)
    }

    /// Returns this configuration with other buckets and routes.
    ///
    /// # Errors
    ///
    /// With every fault of them and its path, as the file has them: `bucket[1].capacity`.
    pub fn with_document(&self, document: &serde_json::Value) -> Result<Self, Vec<String>> {
        let mut faults = Vec::new();
        let Some(keys) = document.as_object() else {
            return Err(vec!["buckets: must be an object with buckets and routes".to_owned()]);
        };
        for key in keys.keys().filter(|key| !["buckets", "routes"].contains(&key.as_str())) {
            faults.push(format!("{key}: unknown key; there are buckets, routes"));
        }
        let mut list = |key: &str| match keys.get(key) {
            Some(found) => Value::serialize(found).expect("JSON is a value"),
            None => {
                faults.push(format!("{key}: is missing: write [] for none"));
                Value::from(Vec::<Value>::new())
            }
        };
        let (buckets, routes) = (list("buckets"), list("routes"));
        let mut config = self.clone();
        config.bucket = BucketConfig::list(buckets, &mut faults);
        config.route = RouteConfig::list(routes, &mut faults);
        if let [only] = &mut config.bucket[..] {
            only.default = true;
        }
        self.check_selectors(&config.bucket, &mut faults);
        config.identity.key_selector.get_or_insert_with(|| self.settled_selector().to_owned());
        config.validate_buckets(&mut faults);
        config.validate_routes(&mut faults);
        if faults.is_empty() { Ok(config) } else { Err(faults) }
    }

    fn settled_selector(&self) -> &str {
        self.selectors().next().unwrap_or("jwt.claims.agent_id")
    }

    /// Who is asking is settled at the start, so what buckets say of it must be what the file says.
    fn check_selectors(&self, buckets: &[BucketConfig], faults: &mut Vec<String>) {
        let settled = self.settled_selector();
        for (index, bucket) in buckets.iter().enumerate() {
            if let Some(found) = bucket.key_selector.as_deref().filter(|found| *found != settled) {
                faults.push(format!(
                    "bucket[{index}].key_selector: must be `{settled}`, as in the file, because who is \
                     asking changes with a restart only, is `{found}`"
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let bucket = json!({"bucket_name": "all", "refill_rate": 20, "capacity": 40,
                            "key_selector": "jwt.claims.agent_id"});
        let document = json!({"buckets": [bucket], "routes": []});
        Config::default().with_document(&document).unwrap()
    }

    fn faults(document: &serde_json::Value) -> Vec<String> {
        config().with_document(document).unwrap_err()
    }

    #[test]
    fn every_key_of_buckets_and_routes_is_taken_and_given_back() {
        let document = json!({
            "buckets": [
                {"bucket_name": "all", "default": true, "refill_rate": 20.5, "capacity": 40,
                 "shadow": false, "earned": false, "key_selector": "jwt.claims.agent_id"},
                {"bucket_name": "tokens", "default": false, "refill_rate": 100.0, "capacity": 4000,
                 "shadow": true, "earned": true},
            ],
            "routes": [
                {"path": "/v1/chat/*", "methods": ["POST"], "buckets": ["tokens"],
                 "cost_header": {"name": "x-max-tokens", "min": 5, "max": 100}, "default_cost": 1,
                 "on_outage": "closed", "shadow": false, "refund_on_5xx": true,
                 "settle_header": "x-tokens-used", "unsettled_cost": 7, "strip_settle_header": true},
                {"path": "/health", "methods": [], "buckets": [], "cost": 0,
                 "strip_settle_header": false},
            ],
        });
        let taken = config().with_document(&document).unwrap();
        assert_eq!(taken.document(), document);
        let again = config().with_document_text(&taken.document_text()).unwrap();
        assert_eq!(again.document(), document);
    }

    #[test]
    fn a_bucket_of_the_list_is_a_bucket_file() {
        let document = config().document();
        let text = document["buckets"][0].to_string();
        let read: BucketConfig = super::super::fault::json(&text).unwrap();
        assert_eq!(read, config().bucket[0]);
    }

    #[test]
    fn every_fault_is_told_at_once_with_its_path() {
        let found = faults(&json!({
            "buckets": [
                {"bucket_name": "all", "refill_rate": "2", "capacity": 40, "default": true},
                {"bucket_name": "b", "refill_rate": 1, "capacity": 9_000_001, "colour": "red"},
                {"bucket_name": "c", "capacity": -1, "key_selector": "peer.ip"},
                7,
            ],
            "routes": [
                {"path": "/a", "buckets": ["b", "none"]},
                {"path": "b", "methods": "POST", "cost": 9_000_001},
            ],
            "more": 1,
        }));
        for said in [
            "more: unknown key",
            "bucket[0].refill_rate: must be a number, is a string",
            "bucket[1].colour: unknown key",
            "bucket[1].capacity: must be at most 9000000, is 9000001",
            "bucket[2].capacity: must be",
            "bucket[2]: `refill_rate` is missing",
            "bucket[2].key_selector: must be `jwt.claims.agent_id`",
            "bucket[3]: must be a table, is a number",
            "route[0].buckets: there is no \"none\"",
            "route[1].methods: must be a list, is a string",
            "route[1].path: \"b\" must begin with",
            "route[1].cost: must be at most 9000000",
        ] {
            assert!(found.iter().any(|fault| fault.starts_with(said)), "{said}: {found:#?}");
        }
        assert!(!found.iter().any(|fault| fault.contains("\"b\": add")), "{found:#?}");
        // Said of the item that is no table as well: its name, its stand-in's, is nobody's.
        assert!(found.len() <= 13, "{found:#?}");
    }

    #[test]
    fn lists_that_are_missing_or_none_are_told() {
        assert_eq!(
            faults(&json!({"buckets": {}})),
            [
                "routes: is missing: write [] for none",
                "bucket: must be a list, is a table",
                "bucket: at least one [[bucket]] or bucket_files is needed",
            ]
        );
        assert!(faults(&json!([])).len() == 1);
    }

    #[test]
    fn a_document_of_another_version_is_refused_whole() {
        let mut text = config().document_text();
        assert!(config().with_document_text(&text).is_ok());
        text = text.replace("\"form\":1", "\"form\":2");
        assert_eq!(config().with_document_text(&text).unwrap_err(), DocumentError::Form);
        for odd in ["[]", "{}", "7", r#"{"form":"1"}"#] {
            assert_eq!(config().with_document_text(odd).unwrap_err(), DocumentError::Form, "{odd}");
        }
        assert!(matches!(config().with_document_text("{"), Err(DocumentError::Json(_))));
        let newer = json!({"form": 1, "buckets": [{"bucket_name": "a", "refill_rate": 1,
                           "capacity": 1, "burst_policy": "new"}], "routes": []});
        let error = config().with_document_text(&newer.to_string()).unwrap_err();
        assert!(matches!(error, DocumentError::Faults(faults) if faults.len() == 1));
    }
}
