//! The user's code, run so that its panics are ends of attempts and not ours (F1).

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use domain_events::BoxFuture;

use crate::{
    dead_letters::cut,
    engine::discard,
    inside::{self, BusId},
};

/// Calls `code` as part of a handler. An error is what its panic says.
pub(crate) fn call<T>(bus: BusId, code: impl FnOnce() -> T) -> Result<T, String> {
    let code = || inside::enter(bus, code);
    catch_unwind(AssertUnwindSafe(code)).map_err(panicked)
}

/// A handler's future whose panics are errors, also those of its drop.
pub(crate) struct Guarded<T, U> {
    bus: BusId,
    future: Option<BoxFuture<'static, T>>,
    /// What is made of its result: errors are the user's too, and so is what their text and their
    /// drop do.
    end: fn(T) -> U,
}

impl<T, U> Guarded<T, U> {
    pub(crate) fn new(bus: BusId, future: BoxFuture<'static, T>, end: fn(T) -> U) -> Self {
        let future = Some(future);
        Self { bus, future, end }
    }

    /// Polls it to its end, but no longer than `limit`. Calls `before_waiting` where it does not come
    /// to its end at once. An error says why it has none.
    pub(crate) async fn within(
        mut self,
        limit: Duration,
        before_waiting: impl FnOnce(),
    ) -> Result<U, Fault> {
        // Most handlers never wait, so the timer is made only for those that do.
        let at_once = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut self).poll(cx))).await;
        if let Poll::Ready(ended) = at_once {
            return ended.map_err(Fault::Panicked);
        }
        before_waiting();
        match tokio::time::timeout(limit, &mut self).await {
            Ok(ended) => ended.map_err(Fault::Panicked),
            Err(_) => Err(Fault::OverTime),
        }
    }

    /// Drops the future. A panic of its drop is an error.
    fn discard(&mut self) -> Result<(), String> {
        match self.future.take() {
            Some(future) => call(self.bus, || drop(future)),
            None => Ok(()),
        }
    }
}

/// Why a handler has no result.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It panicked, and this is what was said.
    Panicked(String),
    /// It ran past its time-out, and was dropped.
    OverTime,
}

impl Fault {
    /// The error text of the attempt.
    pub(crate) fn text(self, limit: Duration) -> String {
        match self {
            Self::Panicked(text) => text,
            Self::OverTime => format!("ran past its time-out of {limit:?}"),
        }
    }
}

impl<T, U> Future for Guarded<T, U> {
    type Output = Result<U, String>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (bus, end) = (self.bus, self.end);
        let Some(future) = self.future.as_mut() else {
            return Poll::Pending;
        };
        let ended = match call(bus, || future.as_mut().poll(cx).map(end)) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(ended)) => Ok(ended),
            Err(text) => Err(text),
        };
        let dropped = self.discard();
        Poll::Ready(dropped.and(ended))
    }
}

impl<T, U> Drop for Guarded<T, U> {
    fn drop(&mut self) {
        drop(self.discard());
    }
}

fn panicked(panic: Box<dyn Any + Send>) -> String {
    let message = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message");
    let message = cut(format!("panicked: {message}"));
    discard(panic);
    message
}
