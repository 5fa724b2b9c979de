//! The id of the schema that we write with: registered, or looked up, until the registry has said it.

use std::sync::Arc;

use tokio::{sync::watch, time::sleep};
use tracing::info;

use super::{
    Config, Retry,
    client::{Client, RegistryError},
};
use crate::{
    bus::BusError,
    rating::{
        Codec,
        confluent::{self, Registration, SchemaId},
    },
};

/// What is known of our schema's id. Clones share it; when all are gone, nobody asks any more.
#[derive(Clone, Debug)]
pub struct Subject {
    progress: watch::Receiver<Progress>,
}

#[derive(Clone, Debug)]
enum Progress {
    /// No answer yet, and no failure.
    Asked,
    Known(SchemaId),
    Failed(Arc<RegistryError>),
}

/// The schema that we write with has no id yet.
#[derive(Clone, Debug, thiserror::Error)]
#[error("schema has no id yet")]
pub struct NoId(#[source] Arc<RegistryError>);

impl Subject {
    /// Begins to ask for the id of what `codec` writes to `topic`. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// When the configuration cannot be carried out. A registry that is away is no error.
    pub fn begin(config: &Config, topic: &str, codec: Codec) -> Result<Self, BusError> {
        let client = Client::new(config)?;
        let subject = config.subject(topic);
        let registers = config.register;
        let (told, progress) = watch::channel(Progress::Asked);
        tokio::spawn(async move {
            let asking = async {
                let mut retry = Retry::new();
                loop {
                    match ask(&client, &subject, codec, registers).await {
                        Ok(id) => {
                            let registry = client.address();
                            info!(registry, subject, schema = id.0, "schema of ratings has its id");
                            told.send_replace(Progress::Known(id));
                            return;
                        }
                        Err(error) => {
                            let doing = "no rating is published without its schema's id";
                            let pause = retry.failed(&error, doing);
                            told.send_replace(Progress::Failed(Arc::new(error)));
                            sleep(pause).await;
                        }
                    }
                }
            };
            tokio::select! {
                () = asking => {}
                () = told.closed() => {}
            }
        });
        Ok(Self { progress })
    }

    /// Returns the id; waits for the first answer, and then no more.
    ///
    /// # Errors
    ///
    /// When the registry has not given it.
    pub async fn id(&self) -> Result<SchemaId, NoId> {
        let mut progress = self.progress.clone();
        let outcome = progress.wait_for(|progress| !matches!(progress, Progress::Asked)).await;
        match &*outcome.expect("the task ends with a known id, or with the last of us") {
            Progress::Known(id) => Ok(*id),
            Progress::Failed(error) => Err(NoId(Arc::clone(error))),
            Progress::Asked => unreachable!("it was waited for to end"),
        }
    }
}

async fn ask(
    client: &Client,
    subject: &str,
    codec: Codec,
    registers: bool,
) -> Result<SchemaId, RegistryError> {
    let Registration { kind, schema, or } = confluent::registration(codec);
    if registers {
        return client.register(subject, kind, schema).await;
    }
    for form in [Some(schema), or].into_iter().flatten() {
        if let Some(id) = client.look_up(subject, kind, form).await? {
            return Ok(id);
        }
    }
    Err(RegistryError::Unregistered { subject: subject.to_owned() })
}
