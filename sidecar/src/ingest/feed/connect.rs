//! One connection to the feed: TCP, TLS, the WebSocket handshake, within one deadline.

use std::{
    io,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, StatusCode, Uri, header, uri::Scheme};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{self, client::IntoClientRequest as _, protocol::WebSocketConfig},
};

use super::plan::Remote;
use crate::rating::RatingId;

/// How long it may take until the feed is connected, from the look-up of its name on.
const CONNECT_DEADLINE: Duration = Duration::from_secs(15);
/// The longest wait that a feed's `Retry-After` is believed for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);
/// The most that waits to be written, in bytes; above tungstenite's buffer of 128 KiB, as it asks for.
const WRITE_BUFFER_MAX: usize = 256 << 10;

/// What is read from the socket at a time, in bytes.
const READ_BUFFER: usize = 64 << 10;

/// What carries the frames.
pub(super) trait Carrier: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Carrier for T {}

/// A connection to the feed.
pub(super) type Socket = WebSocketStream<Box<dyn Carrier>>;

/// Why the feed could not be connected to.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("no connection to {host} port {port}")]
    Tcp {
        host: String,
        port: u16,
        #[source]
        source: io::Error,
    },
    #[error("no TLS with {host}: its certificate or version is not accepted here")]
    Tls {
        host: String,
        #[source]
        source: io::Error,
    },
    #[error("feed answered {status} to the handshake{}", remedy(*status))]
    Answer { status: StatusCode, retry_after: Option<Duration> },
    #[error("no WebSocket handshake")]
    Handshake(#[source] Box<tungstenite::Error>),
    #[error("not connected within {} s", CONNECT_DEADLINE.as_secs())]
    Late,
}

fn remedy(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            ": check the credentials in feed.headers"
        }
        StatusCode::NOT_FOUND => ": check the path in feed.url",
        _ if status.is_redirection() => {
            ": redirects are not followed, set feed.url to their target"
        }
        _ => "",
    }
}

/// When a server that answered so may be asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// As always.
    Soon,
    /// As late as we ever wait: the same will happen again.
    Late,
    /// After so long.
    After(Duration),
}

impl ConnectError {
    pub(super) fn again(&self) -> Again {
        match self {
            Self::Answer { retry_after: Some(wait), .. } => Again::After(*wait),
            Self::Answer { status, .. } if !status.is_server_error() => Again::Late,
            Self::Tls { .. } => Again::Late,
            _ => Again::Soon,
        }
    }

    /// Returns true when the server was there and refused.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Self::Answer { .. } | Self::Handshake(_))
    }
}

/// Connects to the feed at `remote`, whose frames are at most `max_frame_bytes` long.
pub(super) async fn connect(
    remote: &Remote,
    uri: Uri,
    headers: &HeaderMap,
    max_frame_bytes: usize,
) -> Result<Socket, ConnectError> {
    let connecting = async {
        let host = uri.host().expect("the address was checked").to_owned();
        let secure = remote.tls.is_some();
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let stream = TcpStream::connect((bare.as_str(), port)).await;
        let stream =
            stream.map_err(|source| ConnectError::Tcp { host: host.clone(), port, source })?;
        // Pongs are small and wanted at once; a socket that cannot do it works all the same.
        let _ = stream.set_nodelay(true);
        let carrier: Box<dyn Carrier> = match &remote.tls {
            None => Box::new(stream),
            Some(tls) => {
                let failed = |source| ConnectError::Tls { host: host.clone(), source };
                let name = ServerName::try_from(bare).map_err(|_| {
                    failed(io::Error::new(io::ErrorKind::InvalidInput, "no name for a certificate"))
                })?;
                let connector = TlsConnector::from(std::sync::Arc::clone(tls));
                Box::new(connector.connect(name, stream).await.map_err(failed)?)
            }
        };
        let handshake = |error| ConnectError::Handshake(Box::new(error));
        let mut request = uri.into_client_request().map_err(handshake)?;
        request.headers_mut().extend(headers.clone());
        let agent = http::HeaderValue::from_static(concat!("merit/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().entry(header::USER_AGENT).or_insert(agent);
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER)
            // What is said to a peer that does not read: without a bound its pings would fill memory with pongs.
            .max_write_buffer_size(WRITE_BUFFER_MAX)
            .max_message_size(Some(max_frame_bytes))
            .max_frame_size(Some(max_frame_bytes));
        match client_async_with_config(request, carrier, Some(config)).await {
            Ok((socket, _)) => Ok(socket),
            Err(tungstenite::Error::Http(answer)) => Err(ConnectError::Answer {
                status: answer.status(),
                retry_after: retry_after(answer.headers(), SystemTime::now()),
            }),
            Err(error) => Err(handshake(error)),
        }
    };
    timeout(CONNECT_DEADLINE, connecting).await.unwrap_or(Err(ConnectError::Late))
}

/// Returns what `Retry-After` says (RFC 9110 section 10.2.3), within reason.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

/// Returns `uri` with the parameter `name` that says where to go on, in place of one that is there.
pub(super) fn resuming(uri: &Uri, name: &str, last: &RatingId) -> Uri {
    let mut query: Vec<String> = uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty() && pair.split('=').next() != Some(name))
        .map(str::to_owned)
        .collect();
    query.push(format!("{name}={}", utf8_percent_encode(last.as_str(), NON_ALPHANUMERIC)));
    let path = if uri.path().is_empty() { "/" } else { uri.path() };
    let target = format!("{path}?{}", query.join("&"));
    let scheme = uri.scheme().map(Scheme::as_str).unwrap_or_default();
    let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
    Uri::builder()
        .scheme(scheme)
        .authority(authority)
        .path_and_query(target)
        .build()
        .expect("an address with an encoded parameter is one")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_id_is_a_parameter_of_the_address() {
        let resuming = |uri: &str| {
            let id = RatingId::new("a/b&c=1").unwrap();
            super::resuming(&uri.parse().unwrap(), "after", &id).to_string()
        };
        assert_eq!(resuming("wss://h:1"), "wss://h:1/?after=a%2Fb%26c%3D1");
        assert_eq!(resuming("ws://h/p?k=v&after=old"), "ws://h/p?k=v&after=a%2Fb%26c%3D1");
    }

    #[test]
    fn a_refused_handshake_says_when_to_come_back() {
        let answer = |status: u16, field: Option<&str>| {
            let mut headers = HeaderMap::new();
            if let Some(field) = field {
                headers.insert(header::RETRY_AFTER, field.parse().unwrap());
            }
            let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
            let retry_after = retry_after(&headers, now);
            let status = StatusCode::from_u16(status).unwrap();
            ConnectError::Answer { status, retry_after }
        };
        assert_eq!(answer(503, None).again(), Again::Soon);
        let seconds = |seconds| Again::After(Duration::from_secs(seconds));
        assert_eq!(answer(429, Some("7")).again(), seconds(7));
        let date = Some("Sun, 06 Nov 1994 08:49:57 GMT");
        assert_eq!(answer(503, date).again(), seconds(20));
        assert_eq!(answer(503, Some("999999999")).again(), seconds(3600));
        for status in [301, 401, 403, 404, 200] {
            assert_eq!(answer(status, None).again(), Again::Late, "{status}");
        }
        assert!(answer(401, None).to_string().ends_with("check the credentials in feed.headers"));
    }
}
