//! The body of an answer: the service's own, or the text of a refusal.
//!
//! It also carries what lasts as long as it does: the agent's place among the requests in flight,
//! and a charge that the trailers settle.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::{concurrency::Permit, cost, plan::SettleFrom, reservation::Reservation};

pin_project! {
    /// The body of the service behind, or the text of a refusal.
    pub struct AdmissionBody<B> {
        #[pin]
        source: Source<B>,
        permit: Option<Permit>,
        settlement: Option<Box<Settlement>>,
    }
}

pin_project! {
    #[project = SourceProjection]
    enum Source<B> {
        Passed { #[pin] body: B },
        Refused { text: Option<Bytes> },
    }
}

/// A charge, and the field that settles it.
pub(super) struct Settlement {
    from: SettleFrom,
    reservation: Reservation,
}

impl Settlement {
    pub(super) fn new(from: SettleFrom, reservation: Reservation) -> Self {
        Self { from, reservation }
    }

    /// Settles with what `fields` say. Returns true when they said something.
    pub(super) fn read(&self, fields: &mut HeaderMap) -> bool {
        let SettleFrom { field, strip } = &self.from;
        let Some(actual) = last_of(fields, field) else { return false };
        let actual = cost::decimal(actual.as_bytes());
        if *strip {
            fields.remove(field);
        }
        match actual {
            Some(actual) => {
                self.reservation.settle(actual);
            }
            None => tracing::debug!(%field, "the true cost of a request is no number"),
        }
        true
    }
}

/// Returns the last value of a field: trailers come after what they correct.
fn last_of<'a>(fields: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    fields.get_all(name).iter().next_back()
}

impl<B> AdmissionBody<B> {
    pub(super) fn passed(
        body: B,
        permit: Option<Permit>,
        settlement: Option<Box<Settlement>>,
    ) -> Self {
        Self { source: Source::Passed { body }, permit, settlement }
    }

    pub(super) fn refused(text: Bytes) -> Self {
        let text = (!text.is_empty()).then_some(text);
        Self { source: Source::Refused { text }, permit: None, settlement: None }
    }
}

impl<B: std::fmt::Debug> std::fmt::Debug for AdmissionBody<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.source {
            Source::Passed { body } => f.debug_tuple("Passed").field(body).finish(),
            Source::Refused { .. } => f.write_str("Refused"),
        }
    }
}

impl<B: Default> Default for AdmissionBody<B> {
    fn default() -> Self {
        Self::passed(B::default(), None, None)
    }
}

impl<B: Body<Data = Bytes>> Body for AdmissionBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        let mut body = match this.source.project() {
            SourceProjection::Passed { body } => body,
            SourceProjection::Refused { text } => {
                return Poll::Ready(text.take().map(|text| Ok(Frame::data(text))));
            }
        };
        let mut polled = ready!(body.as_mut().poll_frame(context));
        match (&mut polled, &this.settlement) {
            (Some(Ok(frame)), Some(settlement)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    settlement.read(trailers);
                }
            }
            (Some(Ok(_)), None) => {}
            (Some(Err(_)) | None, _) => *this.settlement = None,
        }
        // Whoever knows that this was the end may not ask for another frame.
        if this.permit.is_some()
            && (!matches!(polled, Some(Ok(_))) || body.as_ref().is_end_stream())
        {
            *this.permit = None;
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Passed { body } => body.is_end_stream(),
            Source::Refused { text } => text.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Passed { body } => body.size_hint(),
            Source::Refused { text } => {
                SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64))
            }
        }
    }
}
