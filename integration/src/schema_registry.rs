//! A real schema registry: Apicurio with Confluent's API, which tests may kill and start again on the same
//! port, with what it knew.

use std::{sync::Arc, time::Duration};

use http::Method;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::{
    Folder, Process,
    client::{Client, request},
    eventually,
    installed::script,
    ports,
};

/// How long a registry may take to answer; it takes three seconds.
const START_DEADLINE: Duration = Duration::from_secs(90);
/// Small, quick to start, and quick to be killed.
const JAVA: [&str; 4] =
    ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx256m", "-Dquarkus.http.host=127.0.0.1"];

/// A registry on a port and in a folder of its own.
#[derive(Debug)]
pub struct SchemaRegistry {
    process: Option<Process>,
    // After the process: fields drop in order, and the server writes into its folder.
    folder: Folder,
    port: u16,
}

impl SchemaRegistry {
    /// Starts a registry and waits until it answers.
    ///
    /// # Panics
    ///
    /// When `integration/registry.sh` finds and fetches none, Java is missing, or it does not come up.
    pub async fn start() -> Self {
        let mut registry = Self::down();
        registry.restart().await;
        registry
    }

    /// Returns a registry that is not there yet: [`SchemaRegistry::restart`] starts it.
    #[must_use]
    pub fn down() -> Self {
        Self { process: None, folder: Folder::new("registry"), port: ports::free() }
    }

    /// Returns the registry that the tests of one binary share which do not kill it; each has
    /// subjects of its own.
    pub async fn shared() -> Arc<Self> {
        static SHARED: OnceCell<Arc<SchemaRegistry>> = OnceCell::const_new();
        SHARED.get_or_init(|| async { Arc::new(Self::start().await) }).await.clone()
    }

    /// Starts the registry (again), on the same port and with what it knew.
    ///
    /// # Panics
    ///
    /// When it runs already or does not come up.
    pub async fn restart(&mut self) {
        assert!(self.process.is_none(), "the registry runs already");
        let folder = self.folder.path();
        // In a file, written at once, so that ids outlive a kill.
        let database = folder.join("database");
        let database = format!("jdbc:h2:file:{};WRITE_DELAY=0;FILE_LOCK=FS", database.display());
        let environment = [("REGISTRY_DATASOURCE_URL".to_owned(), database)];
        let mut arguments: Vec<String> = JAVA.iter().map(ToString::to_string).collect();
        arguments.push(format!("-Dquarkus.http.port={}", self.port));
        arguments.extend(["-jar".to_owned(), program().await.to_owned()]);
        let started = Process::start("registry", "java", &arguments, &environment, folder);
        let process = self.process.insert(started);
        let url = format!("http://127.0.0.1:{}/apis/ccompat/v7/subjects", self.port);
        let client = Client::new();
        eventually("the schema registry answers", START_DEADLINE, || {
            if let Some(status) = process.exited() {
                panic!("the registry ended with {status}: {}", process.output());
            }
            let (client, url) = (client.clone(), url.clone());
            async move { client.get(&url, None).await.is_ok_and(|answer| answer.status == 200) }
        })
        .await;
    }

    /// Kills the registry with SIGKILL.
    ///
    /// # Panics
    ///
    /// When it is not running.
    pub fn kill9(&mut self) {
        self.process.take().expect("the registry runs").kill9();
    }

    /// Returns the URL of Confluent's API.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/apis/ccompat/v7", self.port)
    }

    /// Registers a schema under `subject`; returns its id.
    ///
    /// # Panics
    ///
    /// When the registry refuses it.
    pub async fn register(&self, subject: &str, kind: &str, schema: &str) -> u32 {
        let body = json!({ "schemaType": kind, "schema": schema });
        let said = self.send(Method::POST, &format!("/subjects/{subject}/versions"), &body).await;
        let id = said["id"].as_u64().and_then(|id| u32::try_from(id).ok());
        id.unwrap_or_else(|| panic!("{kind} is not registered under {subject}: {said}"))
    }

    /// Sets the compatibility that versions of `subject` must have, such as `BACKWARD`.
    ///
    /// # Panics
    ///
    /// When the registry does not take it.
    pub async fn compatibility(&self, subject: &str, level: &str) {
        let body = json!({ "compatibility": level });
        let said = self.send(Method::PUT, &format!("/config/{subject}"), &body).await;
        assert_eq!(said["compatibility"], level, "{said}");
    }

    async fn send(&self, method: Method, path: &str, body: &Value) -> Value {
        let url = format!("{}{path}", self.url());
        let fields = [("content-type", "application/vnd.schemaregistry.v1+json")];
        let asked = request(method, &url, None, &fields, body.to_string());
        Client::new().call(asked).await.expect("the registry answers").json()
    }
}

/// Returns the path of the registry's program; the first to ask may wait for it to be fetched.
async fn program() -> &'static str {
    static PROGRAM: OnceCell<String> = OnceCell::const_new();
    PROGRAM.get_or_init(|| script("registry.sh", &[])).await
}

/// Returns the path of a Python with Confluent's client; the first to ask may wait for it to be installed.
///
/// # Panics
///
/// When there is none, and none can be made.
pub async fn python() -> &'static str {
    static PYTHON: OnceCell<String> = OnceCell::const_new();
    PYTHON.get_or_init(|| script("python.sh", &[])).await
}
