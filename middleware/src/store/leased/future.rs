//! A decision: made already, on its way to whoever waits, or asked of the store itself.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tokio::sync::oneshot;

use super::{
    Inner,
    lease::{Answer, paid},
};
use crate::store::{Charge, Decision, Lend, StoreError, Verdict};

/// A request that waits for a loan on its way.
struct Waiting<S: Lend> {
    inner: Arc<Inner<S>>,
    /// None once it is answered.
    charge: Option<Charge>,
    receiver: oneshot::Receiver<Answer>,
}

/// What was taken for a caller who went away is put back.
impl<S: Lend> Drop for Waiting<S> {
    fn drop(&mut self) {
        let Some(charge) = self.charge.take() else { return };
        self.receiver.close();
        if let Ok(Ok(verdict)) = self.receiver.try_recv()
            && verdict.decision == Decision::Admitted
        {
            let takes = paid(&charge.takes, &verdict);
            self.inner.put_back(Charge { takes, ..charge });
        }
    }
}

pin_project! {
    /// A decision of a [`Leased`] store.
    pub struct LeasedFuture<S: Lend> {
        #[pin]
        step: Step<S>,
    }
}

pin_project! {
    #[project = StepProjection]
    enum Step<S: Lend> {
        Answered { answer: Option<Answer> },
        Waiting { waiting: Waiting<S> },
        Asking { #[pin] asking: S::Future },
    }
}

impl<S: Lend> LeasedFuture<S> {
    pub(super) fn answered(answer: Answer) -> Self {
        Self { step: Step::Answered { answer: Some(answer) } }
    }

    pub(super) fn waiting(
        inner: &Arc<Inner<S>>,
        charge: Charge,
        receiver: oneshot::Receiver<Answer>,
    ) -> Self {
        let waiting = Waiting { inner: Arc::clone(inner), charge: Some(charge), receiver };
        Self { step: Step::Waiting { waiting } }
    }

    pub(super) fn asking(asking: S::Future) -> Self {
        Self { step: Step::Asking { asking } }
    }
}

impl<S: Lend> Future for LeasedFuture<S> {
    type Output = Result<Verdict, StoreError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut step = self.project().step;
        loop {
            let next = match step.as_mut().project() {
                StepProjection::Answered { answer } => {
                    return Poll::Ready(answer.take().expect("polled after it was ready"));
                }
                StepProjection::Waiting { waiting } => {
                    let answer = ready!(Pin::new(&mut waiting.receiver).poll(context));
                    let charge = waiting.charge.take().expect("polled after it was ready");
                    match answer {
                        Ok(answer) => return Poll::Ready(answer),
                        // The bucket was short of what was asked for, or the loan was cut off.
                        Err(_) => Step::Asking { asking: waiting.inner.store.spend(charge) },
                    }
                }
                StepProjection::Asking { asking } => return asking.poll(context),
            };
            step.set(next);
        }
    }
}

impl<S: Lend> std::fmt::Debug for LeasedFuture<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LeasedFuture").finish_non_exhaustive()
    }
}
