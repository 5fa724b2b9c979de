//! The body of an answer: the service's own, or the text of a refusal.
//!
//! It also carries what lasts as long as it does: the agent's place among the requests in flight,
//! and a charge that the trailers settle.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Version, header};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::{concurrency::Permit, cost, plan::SettleFrom, reservation::Reservation};

pin_project! {
    /// The body of the service behind, or the text of a refusal.
    pub struct AdmissionBody<B> {
        #[pin]
        source: Source<B>,
        permit: Option<Box<Permit>>,
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

/// When a caller has had all of the answer, although nobody asked its body for the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whole {
    /// With the head: no content belongs to it.
    WithHead,
    /// After as many bytes as it is long, if that is known: a server of HTTP/1 writes those and drops the
    /// body, trailers or not (RFC 9112 section 7.1.2 has trailers with chunks only).
    AfterLength,
    /// When its end was seen.
    WhenEnded,
}

impl Whole {
    /// Returns when the answer to `request` is whole.
    pub(super) fn of<B>(request: &Request<B>) -> Self {
        match (request.method(), request.version()) {
            (&Method::HEAD, _) => Self::WithHead,
            (_, Version::HTTP_09 | Version::HTTP_10 | Version::HTTP_11) => Self::AfterLength,
            _ => Self::WhenEnded,
        }
    }
}

/// The field that settles a charge, and the charge while nothing has settled it.
///
/// Dropped before the answer has ended, it raises the charge to what the route says of such
/// requests: a caller that hangs up before the field comes does not choose its price.
pub(super) struct Settlement {
    from: SettleFrom,
    /// Nothing when nothing was charged, or it is settled: then the field is still taken out.
    reservation: Option<Reservation>,
    whole: Whole,
    /// Bytes that are still to come, where they are counted.
    left: Option<u64>,
}

impl Settlement {
    /// Returns what an answer is to be read for; nothing when that has no use.
    pub(super) fn new(
        from: &SettleFrom,
        reservation: Option<&Reservation>,
        whole: Whole,
    ) -> Option<Box<Self>> {
        let used = from.strip || reservation.is_some();
        let reservation = reservation.cloned();
        used.then(|| Box::new(Self { from: from.clone(), reservation, whole, left: None }))
    }

    /// Learns from the head of the answer how much of it is to come.
    pub(super) fn begin<B: Body>(&mut self, response: &Response<B>) {
        if self.whole == Whole::WithHead || response.body().is_end_stream() {
            return self.let_stand();
        }
        if self.whole == Whole::AfterLength {
            // What a server goes by: the field, else the body's own size.
            let stated = response.headers().get(header::CONTENT_LENGTH);
            let stated = stated.and_then(|length| length.to_str().ok()?.parse().ok());
            self.left = stated.or_else(|| response.body().size_hint().exact());
            self.sent(0);
        }
    }

    /// Counts bytes of the answer that the server has taken.
    fn sent(&mut self, bytes: usize) {
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(bytes as u64);
            if *left == 0 {
                self.let_stand();
            }
        }
    }

    /// Settles with what `fields` say, if they say something and nothing has settled before.
    pub(super) fn read(&mut self, fields: &mut HeaderMap) {
        let SettleFrom { field, strip, .. } = &self.from;
        let Some(actual) = last_of(fields, field) else { return };
        if let Some(reservation) = self.reservation.take() {
            match cost::decimal(actual.as_bytes()) {
                Some(actual) => drop(reservation.settle(actual)),
                None => tracing::debug!(%field, "the true cost of a request is no number"),
            }
        }
        if *strip {
            fields.remove(field);
        }
    }

    /// Leaves the charge as it is: the answer has ended, or the service has broken it off.
    pub(super) fn let_stand(&mut self) {
        self.reservation = None;
    }
}

impl Drop for Settlement {
    fn drop(&mut self) {
        if let (Some(reservation), Some(least)) = (&self.reservation, self.from.unsettled) {
            reservation.raise(least);
        }
    }
}

/// Returns the last value of a field: trailers come after what they correct.
fn last_of<'a>(fields: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    fields.get_all(name).iter().next_back()
}

impl<B> AdmissionBody<B> {
    pub(super) fn passed(
        body: B,
        permit: Option<Box<Permit>>,
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
        if let Some(settlement) = this.settlement {
            let mut ended = body.as_ref().is_end_stream();
            match &mut polled {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        settlement.sent(data.len());
                    }
                    if let Some(trailers) = frame.trailers_mut() {
                        settlement.read(trailers);
                        ended = true;
                    }
                }
                Some(Err(_)) | None => ended = true,
            }
            if ended {
                settlement.let_stand();
            }
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
