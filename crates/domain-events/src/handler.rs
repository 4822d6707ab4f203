//! What reacts to events, and what it may answer.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use crate::{DomainEvent, Event, HandlerContext};

/// Reacts to events of type `E`.
///
/// A handler is called at least once for every event it is subscribed to (D1), one at a time and
/// in order for each aggregate (D2), and side by side for different aggregates. A panic counts as
/// an error (F1). A handler that blocks its thread cannot be timed out.
///
/// ```
/// use domain_events::{DomainEvent, Event, EventHandler, HandlerContext, HandlerError};
///
/// struct Counter(std::sync::atomic::AtomicU64);
///
/// impl<E: DomainEvent> EventHandler<E> for Counter {
///     async fn handle(&self, _: Event<E>, _: HandlerContext) -> Result<(), HandlerError> {
///         self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
///         Ok(())
///     }
/// }
/// ```
pub trait EventHandler<E: DomainEvent>: Send + Sync + 'static {
    /// Handles one event.
    ///
    /// The future is dropped where it runs past the time-out of its subscription, so it should
    /// leave nothing half done at an `await`.
    fn handle(
        &self,
        event: Event<E>,
        cx: HandlerContext,
    ) -> impl Future<Output = Result<(), HandlerError>> + Send;
}

/// What an error asks of the bus (F2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Try again, as the retry policy says.
    Transient,
    /// Never try again: a dead letter at once.
    Permanent,
    /// Try again after this long, whatever the cap; counted as an attempt.
    RetryAfter(Duration),
    /// Done, with a note.
    Skip,
}

/// Why an event was not handled, and what to do about it.
///
/// Any error becomes a transient one by `?`. Like `anyhow::Error` it is not itself an `Error`, so
/// that this conversion can exist.
pub struct HandlerError {
    verdict: Verdict,
    source: Box<dyn Error + Send + Sync>,
}

impl HandlerError {
    /// A failure that may pass: retried.
    pub fn transient(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::with(Verdict::Transient, error)
    }

    /// A failure that stays: a dead letter at once.
    pub fn permanent(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::with(Verdict::Permanent, error)
    }

    /// A failure that is worth another attempt after `delay`.
    pub fn retry_after(delay: Duration, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::with(Verdict::RetryAfter(delay), error)
    }

    /// No failure: the event needs nothing done, for `reason`.
    pub fn skip(reason: impl Into<String>) -> Self {
        Self::with(Verdict::Skip, reason.into())
    }

    fn with(verdict: Verdict, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            verdict,
            source: error.into(),
        }
    }

    /// The same verdict on each of `count` events of a batch: the text is that of the whole chain.
    pub(crate) fn on_all(&self, count: usize) -> impl Iterator<Item = Self> {
        let (verdict, text) = (self.verdict, Arc::<str>::from(self.to_string()));
        (0..count).map(move |_| Self::with(verdict, Text(Arc::clone(&text))))
    }

    /// What the error asks for.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }
}

/// The text of an error, shared by those that say the same.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Text(Arc<str>);

impl<E: Error + Send + Sync + 'static> From<E> for HandlerError {
    fn from(error: E) -> Self {
        Self::transient(error)
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)?;
        let mut cause = self.source.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.verdict)
    }
}
