//! A body that passes unchanged while somebody looks.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::body::{Body, Bytes};
use http_body::{Body as HttpBody, Frame, SizeHint};

/// What passes: a frame, a failure, or the end.
pub(super) type Passed = Option<Result<Frame<Bytes>, axum::Error>>;

/// Returns `body`, of which `look` sees all that passes, and with it whether that was the last: a
/// body of known length is not asked for its end. While it is asked and nothing is there, `look` is told `None`.
pub(super) fn passing(
    body: Body,
    look: impl FnMut(Option<&Passed>, bool) + Send + Unpin + 'static,
) -> Body {
    Body::new(Passing { body, look })
}

struct Passing<F> {
    body: Body,
    look: F,
}

impl<F: FnMut(Option<&Passed>, bool) + Unpin> HttpBody for Passing<F> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Passed> {
        let passed = Pin::new(&mut self.body).poll_frame(context);
        let last = matches!(passed, Poll::Ready(None)) || self.body.is_end_stream();
        (self.look)(if let Poll::Ready(passed) = &passed { Some(passed) } else { None }, last);
        passed
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
