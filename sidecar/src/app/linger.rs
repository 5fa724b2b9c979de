//! A request's body that nobody reads to its end is read away, within bounds.
//!
//! A server that answers before it has read a body and then closes makes the kernel reset the connection, and with
//! that takes away the answer the client has not read yet: a 413 or a 401 would look like a network
//! failure (RFC 9112 section 9.6). So what is left of a body is read and thrown away while the answer goes out;
//! with that the connection can also carry the next request.
//!
//! HTTP/2 needs none of it: there a stream is reset without its connection.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::{
    Request, Version,
    body::{Body as HttpBody, Frame, Incoming, SizeHint},
    header::EXPECT,
};

use super::serve::Tasks;

/// What is read away of one body, at most, in bytes; a client that sends more sees its connection closed.
pub(super) const LINGER_MAX: usize = 8 << 20;

/// How long is read, at most.
const LINGER_TIME: Duration = Duration::from_secs(5);

/// Returns the request with a body of which `tasks` read away what the service leaves unread.
pub(super) fn body_read_away(request: Request<Incoming>, tasks: &Tasks) -> Request<Body> {
    // Reading is what asks a client that waits for `100 Continue` to send its body.
    let (comes, old) =
        (!request.headers().contains_key(EXPECT), request.version() <= Version::HTTP_11);
    request.map(|body| match old && !body.is_end_stream() {
        true => Body::new(ReadAway { body: Some(body), comes, tasks: tasks.clone() }),
        false => Body::new(body),
    })
}

/// A body whose rest is read when it is dropped.
struct ReadAway {
    /// None once it has ended.
    body: Option<Incoming>,
    /// Whether the client sends it without being asked, or was asked.
    comes: bool,
    tasks: Tasks,
}

impl HttpBody for ReadAway {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.comes = true;
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = std::task::ready!(Pin::new(body).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl Drop for ReadAway {
    fn drop(&mut self) {
        let rest = self.body.take().filter(|body| self.comes && !body.is_end_stream());
        let Some(mut body) = rest else { return };
        self.tasks.spawn(tokio::time::timeout(LINGER_TIME, async move {
            let mut left = LINGER_MAX;
            while let Some(Ok(frame)) = body.frame().await {
                let length = frame.data_ref().map_or(0, Bytes::len);
                match left.checked_sub(length) {
                    Some(rest) => left = rest,
                    None => break,
                }
            }
        }));
    }
}
