//! A bus that records what is published and delivers nothing: for tests of code that publishes.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use domain_events::{
    BoxFuture, DomainEvent, Event, EventEnvelope, ExpectedVersion, Handled, Handling, NewEvent,
    PublishError, Receipt, UnfaithfulError, WaitError,
};

mod names;
use names::Names;

mod port;

/// A bus that records what is published and delivers nothing.
///
/// It asks for no ceremony: it publishes before it is started. Otherwise it is strict, whatever the
/// build: a name that cannot be one, an expected version, which needs a store (P6), and an event that
/// its JSON does not give back as it was (D11) are refused. Its receipts have no outcomes and never
/// wait. It keeps the names of subscriptions, and so refuses those that cannot work.
///
/// As a [`HandlerPublisher`](domain_events::HandlerPublisher) it records what a handler publishes
/// through its context. A clone is the same bus.
///
/// ```
/// use std::sync::Arc;
/// use domain_events::{DomainEvent, EventBus, NewEvent, PublishError};
/// use event_testkit::recording_bus::RecordingBus;
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Serialize, Deserialize, DomainEvent)]
/// # #[domain_event(name = "shop.order-placed", aggregate = "order", id = order_id)]
/// # struct OrderPlaced { order_id: String, total: u64 }
/// # async fn place_order(bus: &dyn EventBus, total: u64) -> Result<(), PublishError> {
/// #     let placed = OrderPlaced { order_id: "o-1".to_owned(), total };
/// #     bus.publish(NewEvent::new(placed)).await.map(drop)
/// # }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), PublishError> {
/// let bus = RecordingBus::new();
/// place_order(&bus, 250).await?;
/// assert_eq!(bus.published_once::<OrderPlaced>().total, 250);
///
/// bus.refuse_next(|events| PublishError::Full { capacity: 10, events });
/// assert!(place_order(&bus, 300).await.is_err());
/// assert_eq!(bus.published().len(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct RecordingBus {
    shared: Arc<Mutex<State>>,
}

type Refusal = Box<dyn FnOnce(Vec<NewEvent>) -> PublishError + Send>;

#[derive(Default)]
struct State {
    started_at: Option<Instant>,
    is_stopped: bool,
    is_disabled: bool,
    refusals: VecDeque<Refusal>,
    accepted: u64,
    published: Vec<Arc<EventEnvelope>>,
    names: Names,
}

impl RecordingBus {
    /// A bus that has recorded nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// All events recorded, in the order of their publishing.
    pub fn published(&self) -> Vec<Arc<EventEnvelope>> {
        self.lock().published.clone()
    }

    /// The events of type `E` recorded, in the order of their publishing.
    ///
    /// # Panics
    /// When another Rust type published an event under the event type name of `E`.
    #[track_caller]
    pub fn published_of<E: DomainEvent>(&self) -> Vec<Event<E>> {
        typed(&self.published())
    }

    /// The one event of type `E` recorded.
    ///
    /// # Panics
    /// When there is none or more than one, with a list of all that was recorded; and as
    /// [`published_of`](Self::published_of).
    #[track_caller]
    pub fn published_once<E: DomainEvent>(&self) -> Event<E> {
        let published = self.published();
        let mut events = typed::<E>(&published);
        let (wanted, found) = (E::EVENT_TYPE, events.len());
        assert!(
            found == 1,
            "one event of type {wanted:?} was to be published, and {found} were, among {:?}",
            Listed(&published)
        );
        events.swap_remove(0)
    }

    /// Forgets the events recorded. The [statistics](domain_events::EventBus::statistics) go on.
    pub fn clear(&self) {
        let published = std::mem::take(&mut self.lock().published);
        drop(published);
    }

    /// Records nothing until [`enable`](Self::enable): what is published is checked and accepted,
    /// with a receipt, and goes nowhere.
    pub fn disable(&self) {
        self.lock().is_disabled = true;
    }

    /// Records what is published, as at the beginning.
    pub fn enable(&self) {
        self.lock().is_disabled = false;
    }

    /// Refuses the next call that would be accepted, once, with what `error` makes of its events;
    /// said again, the one after it as well.
    pub fn refuse_next(&self, error: impl FnOnce(Vec<NewEvent>) -> PublishError + Send + 'static) {
        self.lock().refusals.push_back(Box::new(error));
    }

    fn accept(&self, events: Vec<NewEvent>) -> Result<Vec<Receipt>, PublishError> {
        events.iter().try_for_each(check)?;
        let mut state = self.lock();
        if state.is_stopped {
            return Err(PublishError::Stopped);
        }
        if events.is_empty() {
            return Ok(Vec::new());
        }
        if let Some(error) = state.refusals.pop_front() {
            drop(state);
            return Err(error(events));
        }
        let sealed = events.into_iter().map(NewEvent::seal);
        let envelopes: Vec<_> = sealed.collect();
        state.accepted += envelopes.len() as u64;
        if !state.is_disabled {
            state.published.extend_from_slice(&envelopes);
        }
        // What was not recorded is dropped here, and how is up to the user's code.
        drop(state);
        Ok(envelopes.iter().map(|envelope| receipt(envelope)).collect())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.shared)
    }
}

fn lock(shared: &Mutex<State>) -> MutexGuard<'_, State> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn check(event: &NewEvent) -> Result<(), PublishError> {
    event.check().map_err(PublishError::Name)?;
    event.check_faithful().map_err(|error| match error {
        UnfaithfulError::Encode(error) => PublishError::Encode(error),
        error => PublishError::Unfaithful(error),
    })?;
    match event.expected() {
        ExpectedVersion::Any => Ok(()),
        _ => Err(PublishError::VersionWithoutStore),
    }
}

fn receipt(envelope: &EventEnvelope) -> Receipt {
    Receipt::new(envelope.id(), None, false, Arc::new(Undelivered))
}

/// The record of an event that nobody is given.
struct Undelivered;

impl Handling for Undelivered {
    fn handled(self: Arc<Self>) -> BoxFuture<'static, Result<Handled, WaitError>> {
        Box::pin(std::future::ready(Ok(Handled::default())))
    }
}

#[track_caller]
fn typed<E: DomainEvent>(published: &[Arc<EventEnvelope>]) -> Vec<Event<E>> {
    let mut events = Vec::new();
    for envelope in published {
        if envelope.event_type() == E::EVENT_TYPE {
            match envelope.typed() {
                Ok(event) => events.push(event),
                Err(error) => panic!("two Rust types have one event type name: {error}"),
            }
        }
    }
    events
}

/// Envelopes by what may be told of them: types and aggregates.
struct Listed<'a>(&'a [Arc<EventEnvelope>]);

impl fmt::Debug for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told = |it: &Arc<EventEnvelope>| (it.event_type().to_owned(), it.aggregate().clone());
        f.debug_list().entries(self.0.iter().map(told)).finish()
    }
}

impl fmt::Debug for RecordingBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordingBus")
            .field("published", &Listed(&self.published()))
            .finish_non_exhaustive()
    }
}
