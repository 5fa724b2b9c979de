//! A reader of Server-Sent Events, as strict as a browser: it knows lines, fields and nothing else.

use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use serde_json::Value;

use crate::client::Client;

/// How long a stream may be silent: twice what it should be.
const SILENCE: Duration = Duration::from_secs(30);

/// An event that a browser would hand to `onmessage`.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The last id that the stream gave.
    pub id: String,
    /// Its data.
    pub data: Value,
}

/// An open stream.
#[derive(Debug)]
pub struct Sse {
    body: Incoming,
    unread: Vec<u8>,
    /// The last id that the stream gave.
    pub last_id: String,
    /// What it said of when to connect again, in milliseconds.
    pub retry_ms: Option<u64>,
    /// Comments so far.
    pub comments: Vec<String>,
}

impl Sse {
    /// Opens the stream at `url`, with a token and behind the event `last`, if there are any.
    ///
    /// # Errors
    ///
    /// When the answer is no stream; its text is the message.
    pub async fn open(
        client: &Client,
        url: &str,
        token: Option<&str>,
        last: Option<&str>,
    ) -> anyhow::Result<Self> {
        let mut request = Request::get(url).header(header::ACCEPT, "text/event-stream");
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = client.send(request.body(Full::new(Bytes::new()))?).await?;
        let kind = response.headers().get(header::CONTENT_TYPE).cloned();
        if response.status() != 200 || kind.as_ref().is_none_or(|kind| kind != "text/event-stream")
        {
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            bail!("{status}: {}", String::from_utf8_lossy(&body));
        }
        Ok(Self {
            body: response.into_body(),
            unread: Vec::new(),
            last_id: last.unwrap_or_default().to_owned(),
            retry_ms: None,
            comments: Vec::new(),
        })
    }

    /// Returns the next event; nothing at the end of the stream.
    ///
    /// # Errors
    ///
    /// When the connection breaks, is silent, or an event is named or no JSON.
    pub async fn next(&mut self) -> anyhow::Result<Option<Event>> {
        let mut data: Option<String> = None;
        loop {
            let Some(line) = self.line().await? else { return Ok(None) };
            if line.is_empty() {
                if let Some(data) = data.take() {
                    let data = serde_json::from_str(&data).with_context(|| data.clone())?;
                    return Ok(Some(Event { id: self.last_id.clone(), data }));
                }
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((&line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value).to_owned();
            match field {
                "" => self.comments.push(value),
                "data" if data.is_none() => data = Some(value),
                "id" => self.last_id = value,
                "retry" => self.retry_ms = Some(value.parse()?),
                other => bail!("field {other:?} in {line:?}"),
            }
        }
    }

    async fn line(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return Ok(Some(String::from_utf8(line[..end].to_vec())?));
            }
            match tokio::time::timeout(SILENCE, self.body.frame()).await? {
                None => return Ok(None),
                Some(frame) => {
                    let data = frame?.into_data().unwrap_or_default();
                    self.unread.extend_from_slice(&data);
                }
            }
        }
    }
}
