//! The port of synchronous publishing, for domain services that know no runtime (P8).

use crate::{NewEvent, PublishError, Receipt};

/// Publishes domain events from code that is not async, on any thread: inside a runtime, beside one, or
/// without any. Object-safe: a domain service holds it as `Arc<dyn DomainEventPublisher>`.
///
/// It blocks the thread until the events are accepted, and committed where the bus is durable, but never
/// for room: where the queue is full, a durable bus leaves them to its log.
///
/// ```
/// use domain_events::{DomainEventPublisher, NewEvent, PublishError};
///
/// /// A service of the domain: all that it knows of publishing is the port.
/// fn close(books: &dyn DomainEventPublisher, closed: NewEvent) -> Result<(), PublishError> {
///     books.publish(closed)?;
///     Ok(())
/// }
/// ```
pub trait DomainEventPublisher: Send + Sync {
    /// Publishes one event.
    ///
    /// # Errors
    /// As [`publish_all`](Self::publish_all).
    fn publish(&self, event: NewEvent) -> Result<Receipt, PublishError> {
        let mut receipts = self.publish_all(vec![event])?;
        Ok(receipts.swap_remove(0))
    }

    /// Publishes events, all or none, and consecutive (P3).
    ///
    /// # Errors
    /// [`PublishError`] says what did not happen; nothing was published then, except where it says that
    /// nobody can know. [`Full`](PublishError::Full), with the events, where a volatile bus has no room.
    fn publish_all(&self, events: Vec<NewEvent>) -> Result<Vec<Receipt>, PublishError>;
}
