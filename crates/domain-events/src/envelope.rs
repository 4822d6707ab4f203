//! An event with everything known about it, before and after it is in the log.

use std::{collections::BTreeMap, fmt, sync::Arc};

use crate::{
    AggregateRef, ConfigError, CorrelationId, DecodeError, DomainEvent, EncodeError, Event,
    EventId, ExpectedVersion, Position, Recorded, Timestamp, UnfaithfulError, Urgency, Version,
    config::check_name, id::Name, payload::Payload,
};

/// What is known about an event besides its content: its place in a chain, and free entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventMetadata {
    /// What all events that follow from one beginning share.
    pub correlation_id: CorrelationId,
    /// The event whose handling published this one.
    pub causation_id: Option<EventId>,
    /// What the application wants to know of the event.
    pub entries: BTreeMap<String, String>,
}

/// An event with everything known about it. It never changes once it is published.
#[derive(Clone)]
pub struct EventEnvelope {
    id: EventId,
    event_type: Name,
    schema_version: u32,
    aggregate: AggregateRef,
    urgency: Urgency,
    metadata: EventMetadata,
    occurred_at: Timestamp,
    recorded: Option<Recorded>,
    damaged: bool,
    payload: Payload,
}

impl EventEnvelope {
    /// An envelope read back from a log: `payload` is the JSON that was stored.
    #[expect(clippy::too_many_arguments, reason = "one argument a column")]
    pub fn from_log(
        id: EventId,
        event_type: &Arc<str>,
        schema_version: u32,
        aggregate: AggregateRef,
        urgency: Urgency,
        metadata: EventMetadata,
        occurred_at: Timestamp,
        recorded: Recorded,
        payload: Box<[u8]>,
    ) -> Self {
        Self {
            id,
            event_type: Name::Shared(Arc::clone(event_type)),
            schema_version,
            aggregate,
            urgency,
            metadata,
            occurred_at,
            recorded: Some(recorded),
            damaged: false,
            payload: Payload::json(payload),
        }
    }

    /// Marks an envelope whose stored checksum does not match: it cannot be decoded.
    #[must_use]
    pub fn damaged(self) -> Self {
        Self {
            damaged: true,
            ..self
        }
    }

    /// Notes where the log has put the event; in place where nobody else holds it.
    #[must_use]
    pub fn with_recorded(mut self: Arc<Self>, recorded: Recorded) -> Arc<Self> {
        Arc::make_mut(&mut self).recorded = Some(recorded);
        self
    }

    /// The event's id.
    pub fn id(&self) -> EventId {
        self.id
    }

    /// The stable name of the event's type.
    pub fn event_type(&self) -> &str {
        self.event_type.as_str()
    }

    /// The version of the payload's schema.
    pub fn schema_version(&self) -> u32 {
        self.schema_version
    }

    /// The aggregate that raised the event.
    pub fn aggregate(&self) -> &AggregateRef {
        &self.aggregate
    }

    /// The event's urgency (D5).
    pub fn urgency(&self) -> Urgency {
        self.urgency
    }

    /// Correlation, causation and free entries.
    pub fn metadata(&self) -> &EventMetadata {
        &self.metadata
    }

    /// When the event happened, by the clock of whoever published it.
    pub fn occurred_at(&self) -> Timestamp {
        self.occurred_at
    }

    /// Place and time in the log; `None` on a volatile bus.
    pub fn recorded(&self) -> Option<Recorded> {
        self.recorded
    }

    /// The place in the whole log; `None` on a volatile bus.
    pub fn position(&self) -> Option<Position> {
        self.recorded.map(|recorded| recorded.position)
    }

    /// The place in the aggregate's history; `None` on a volatile bus.
    pub fn version(&self) -> Option<Version> {
        self.recorded.map(|recorded| recorded.version)
    }

    /// The payload as JSON; encoded at the first call where the event came typed.
    ///
    /// # Errors
    /// When the event's `Serialize` fails.
    pub fn payload(&self) -> Result<&[u8], EncodeError> {
        self.payload.encoded(self.event_type())
    }

    /// The typed event; decoded at the first call where the event came from the log.
    ///
    /// # Errors
    /// When the event is of another type, damaged, of a newer schema, or its payload is not JSON of
    /// `E`.
    pub fn typed<E: DomainEvent>(self: &Arc<Self>) -> Result<Event<E>, DecodeError> {
        Arc::clone(self).into_typed()
    }

    pub(crate) fn into_typed<E: DomainEvent>(self: Arc<Self>) -> Result<Event<E>, DecodeError> {
        if self.event_type() != E::EVENT_TYPE {
            return Err(DecodeError::OtherType {
                expected: E::EVENT_TYPE.to_owned(),
                actual: self.event_type().to_owned(),
            });
        }
        if self.damaged {
            return Err(DecodeError::Damaged);
        }
        Ok(Event::new(
            self.payload.decoded(self.schema_version())?,
            self,
        ))
    }
}

impl fmt::Debug for EventEnvelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Payloads and free entries never appear in logs.
        f.debug_struct("EventEnvelope")
            .field("id", &self.id)
            .field("event_type", &self.event_type())
            .field("aggregate", &self.aggregate)
            .field("position", &self.position())
            .finish_non_exhaustive()
    }
}

/// An event on its way to a bus or a store, with what the publisher wants to say about it.
///
/// Every `DomainEvent` is one by `into()`; what is not said is filled in at the publishing. A clone
/// is cheap, and another event unless the id is given.
#[derive(Clone)]
pub struct NewEvent {
    /// The envelope to be; what is not given is not to be read.
    envelope: Arc<EventEnvelope>,
    given: Given,
}

/// What of an event its publisher gave, so that a bus can give the event back as it was.
#[derive(Clone, Copy, Debug, Default)]
pub struct Given {
    id: bool,
    correlation_id: bool,
    occurred_at: bool,
    expected: ExpectedVersion,
}

impl NewEvent {
    /// `event`, with everything else left to be filled in.
    pub fn new<E: DomainEvent>(event: E) -> Self {
        let nobody = EventId::from_bytes([0; 16]);
        let envelope = EventEnvelope {
            id: nobody,
            event_type: Name::Static(E::EVENT_TYPE),
            schema_version: E::SCHEMA_VERSION,
            aggregate: AggregateRef::of_static(E::AGGREGATE_TYPE, &event.aggregate_id()),
            urgency: E::URGENCY,
            metadata: EventMetadata {
                correlation_id: nobody.into(),
                causation_id: None,
                entries: BTreeMap::new(),
            },
            occurred_at: Timestamp::from_micros(0),
            recorded: None,
            damaged: false,
            payload: Payload::typed(Arc::new(event)),
        };
        Self {
            envelope: Arc::new(envelope),
            given: Given::default(),
        }
    }

    /// Changes the envelope to be; in place where no clone holds it, too.
    fn with(mut self, change: impl FnOnce(&mut EventEnvelope)) -> Self {
        change(Arc::make_mut(&mut self.envelope));
        self
    }

    /// Gives the event's id: publishing the same event again finds it in the log, for as long as that is
    /// kept (P6, R8).
    #[must_use]
    pub fn id(mut self, id: EventId) -> Self {
        self.given.id = true;
        self.with(|it| it.id = id)
    }

    /// Makes the event part of a chain.
    #[must_use]
    pub fn correlation_id(mut self, id: CorrelationId) -> Self {
        self.given.correlation_id = true;
        self.with(|it| it.metadata.correlation_id = id)
    }

    /// Names the event that this one follows from.
    #[must_use]
    pub fn causation_id(self, id: EventId) -> Self {
        self.with(|it| it.metadata.causation_id = Some(id))
    }

    /// Adds a free entry to the metadata.
    #[must_use]
    pub fn metadata(self, key: impl Into<String>, value: impl Into<String>) -> Self {
        let (key, value) = (key.into(), value.into());
        self.with(|it| drop(it.metadata.entries.insert(key, value)))
    }

    /// Gives the moment at which the event happened, where that is not now.
    #[must_use]
    pub fn occurred_at(mut self, at: Timestamp) -> Self {
        self.given.occurred_at = true;
        self.with(|it| it.occurred_at = at)
    }

    /// Overrides the urgency of the event's type (D5).
    #[must_use]
    pub fn urgency(self, urgency: Urgency) -> Self {
        self.with(|it| it.urgency = urgency)
    }

    /// Requires something of the aggregate's history (P6).
    #[must_use]
    pub fn expect(mut self, expected: ExpectedVersion) -> Self {
        self.given.expected = expected;
        self
    }

    /// What the event requires of its aggregate's history.
    pub fn expected(&self) -> ExpectedVersion {
        self.given.expected
    }

    /// The event's type.
    pub fn event_type(&self) -> &str {
        self.envelope.event_type()
    }

    /// The aggregate that raised the event.
    pub fn aggregate(&self) -> &AggregateRef {
        &self.envelope.aggregate
    }

    /// Checks the names of the event's type and of its aggregate's type.
    ///
    /// # Errors
    /// When one is empty or over 255 bytes.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_name("EVENT_TYPE", self.event_type())?;
        check_name("AGGREGATE_TYPE", self.aggregate().aggregate_type())
    }

    /// Checks that the event, read back from its JSON, is what it was (D11): it is written, read and
    /// written again.
    ///
    /// # Errors
    /// Where it is not, or cannot be written or read.
    pub fn check_faithful(&self) -> Result<(), UnfaithfulError> {
        self.envelope.payload.check_faithful(self.event_type())
    }

    /// Fills in the id and the moment at which it happens, where they are not given.
    pub(crate) fn raised(self) -> Self {
        let (now, given) = (Timestamp::now(), self.given);
        let event = match given.id {
            true => self,
            false => self.id(EventId::fresh(now)),
        };
        match given.occurred_at {
            true => event,
            false => event.occurred_at(now),
        }
    }

    /// Fills in what an event published by a handler inherits from the one handled (P9).
    pub(crate) fn caused_by(mut self, cause: &EventEnvelope, id: EventId) -> Self {
        let given = self.given;
        (self.given.id, self.given.correlation_id) = (true, true);
        self.with(|it| {
            if !given.id {
                it.id = id;
            }
            if !given.correlation_id {
                it.metadata.correlation_id = cause.metadata.correlation_id;
            }
            it.metadata.causation_id.get_or_insert(cause.id);
        })
    }

    /// What of the event was given and not left to be filled in; for buses.
    pub fn given(&self) -> Given {
        self.given
    }

    /// The event as it was before it was [sealed](Self::seal); for buses, which give events back.
    pub fn unseal(envelope: Arc<EventEnvelope>, given: Given) -> Self {
        Self { envelope, given }
    }

    /// The envelope of the event, everything left open filled in; not yet recorded.
    pub fn seal(mut self) -> Arc<EventEnvelope> {
        let (now, given) = (Timestamp::now(), self.given);
        let envelope = Arc::make_mut(&mut self.envelope);
        if !given.id {
            envelope.id = EventId::fresh(now);
        }
        if !given.correlation_id {
            envelope.metadata.correlation_id = envelope.id.into();
        }
        if !given.occurred_at {
            envelope.occurred_at = now;
        }
        self.envelope
    }
}

impl<E: DomainEvent> From<E> for NewEvent {
    fn from(event: E) -> Self {
        Self::new(event)
    }
}

impl fmt::Debug for NewEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewEvent")
            .field("event_type", &self.event_type())
            .field("aggregate", self.aggregate())
            .finish_non_exhaustive()
    }
}
