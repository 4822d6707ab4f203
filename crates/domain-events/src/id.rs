//! Names of single things: events, chains of events, aggregates.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, OnceLock,
        atomic::{self, AtomicU64},
    },
};

use serde::{Deserialize, Serialize};
use uuid::{Builder, Uuid};

use crate::Timestamp;

/// The unique id of an event: 16 bytes in the form of a UUID.
///
/// Fresh ids are UUID version 7, derived ones version 8; both begin with a time stamp in
/// milliseconds, so that the log's index of ids grows at its end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventId(Uuid);

impl EventId {
    /// A fresh id.
    #[expect(clippy::new_without_default, reason = "each id is another value")]
    pub fn new() -> Self {
        Self::fresh(Timestamp::now())
    }

    /// A fresh id, greater than all fresh ones before it in this process: UUID version 7 (RFC 9562),
    /// with a counter in the 12 bits behind the time (its section 6.2, method 1).
    pub(crate) fn fresh(now: Timestamp) -> Self {
        const COUNTER_BITS: u32 = 12;
        static LAST: AtomicU64 = AtomicU64::new(0);
        let present = millis(now) << COUNTER_BITS;
        // A millisecond with more ids than the counter counts borrows from the next one.
        let next = |last: u64| Some(present.max(last + 1));
        let (Ok(last) | Err(last)) =
            LAST.fetch_update(atomic::Ordering::Relaxed, atomic::Ordering::Relaxed, next);
        let number = present.max(last + 1);
        let mut bytes = *Uuid::new_v4().as_bytes();
        bytes[..6].copy_from_slice(&(number >> COUNTER_BITS).to_be_bytes()[2..]);
        let [high, low] = ((number & ((1 << COUNTER_BITS) - 1)) as u16).to_be_bytes();
        (bytes[6], bytes[7]) = (0x70 | high, low);
        Self(Uuid::from_bytes(bytes))
    }

    /// The id of what `key` names at time `at`: the same for the same arguments, always.
    ///
    /// For events that come from outside under a natural key: publishing one again finds it in the
    /// log, for as long as that is kept (P6, R8). `key` must name the event among everything the
    /// application stores.
    pub fn from_key(at: Timestamp, key: &str) -> Self {
        Self::hashed(
            millis(at).to_be_bytes()[2..].try_into().unwrap_or([0; 6]),
            Uuid::NAMESPACE_OID,
            key,
        )
    }

    /// The id of the `number`th event that `subscription` publishes while handling `cause` (P9).
    ///
    /// A repeated attempt derives the same ids and so finds its events in the log already.
    pub fn derived(cause: EventId, subscription: &str, number: u32) -> Self {
        let mut time = [0; 6];
        time.copy_from_slice(&cause.0.as_bytes()[..6]);
        Self::hashed(time, cause.0, &format!("{number}/{subscription}"))
    }

    /// SHA-1 of name space and name as in UUID version 5 (RFC 9562), behind a time prefix.
    fn hashed(time: [u8; 6], namespace: Uuid, name: &str) -> Self {
        let mut bytes = *Uuid::new_v5(&namespace, name.as_bytes()).as_bytes();
        bytes[..6].copy_from_slice(&time);
        Self(Builder::from_custom_bytes(bytes).into_uuid())
    }

    /// The 16 bytes of the id, as stored.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The id with these 16 bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

/// Milliseconds since 1970, in the 48 bits that an id has for them.
fn millis(at: Timestamp) -> u64 {
    let millis = u64::try_from(at.as_micros().div_euclid(1_000)).unwrap_or(0);
    millis & ((1 << 48) - 1)
}

impl From<Uuid> for EventId {
    fn from(uuid: Uuid) -> Self {
        Self(uuid)
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What all events that follow from one beginning have in common.
///
/// Unless given, it is the id of the event that began the chain.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CorrelationId(Uuid);

impl CorrelationId {
    /// The 16 bytes of the id, as stored.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The id with these 16 bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

impl From<Uuid> for CorrelationId {
    fn from(uuid: Uuid) -> Self {
        Self(uuid)
    }
}

impl From<EventId> for CorrelationId {
    fn from(id: EventId) -> Self {
        Self(id.0)
    }
}

impl fmt::Display for CorrelationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for CorrelationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A name that is either compiled in or came from outside: a cheap clone in both cases.
#[derive(Clone)]
pub(crate) enum Name {
    Static(&'static str),
    Shared(Arc<str>),
}

impl Name {
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Static(name) => name,
            Self::Shared(name) => name,
        }
    }
}

/// An aggregate: its type and its id.
#[derive(Clone)]
pub struct AggregateRef {
    aggregate_type: Name,
    id: Arc<str>,
    /// The hash of both, so that nobody has to work it out under a lock.
    hash: u64,
}

impl AggregateRef {
    /// The aggregate of type `aggregate_type` with id `id`; any unicode is an id.
    pub fn new(aggregate_type: &str, id: &str) -> Self {
        Self::named(Name::Shared(aggregate_type.into()), id)
    }

    pub(crate) fn of_static(aggregate_type: &'static str, id: &str) -> Self {
        Self::named(Name::Static(aggregate_type), id)
    }

    fn named(aggregate_type: Name, id: &str) -> Self {
        // Of this process alone, so that nobody can choose ids that share a hash.
        static KEYS: OnceLock<RandomState> = OnceLock::new();
        let keys = KEYS.get_or_init(RandomState::new);
        Self {
            hash: keys.hash_one((id, aggregate_type.as_str())),
            aggregate_type,
            id: id.into(),
        }
    }

    /// The stable name of the aggregate's type.
    pub fn aggregate_type(&self) -> &str {
        self.aggregate_type.as_str()
    }

    /// The aggregate's id, unique within its type.
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl PartialEq for AggregateRef {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
            && self.id == other.id
            && self.aggregate_type() == other.aggregate_type()
    }
}

impl Eq for AggregateRef {}

impl std::hash::Hash for AggregateRef {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl fmt::Display for AggregateRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.aggregate_type(), self.id)
    }
}

impl fmt::Debug for AggregateRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p9_derived_ids_depend_on_cause_subscription_and_number_alone() {
        let cause = EventId::new();
        let id = EventId::derived(cause, "risk", 1);
        assert_eq!(id, EventId::derived(cause, "risk", 1));
        assert_ne!(id, EventId::derived(cause, "risk", 2));
        assert_ne!(id, EventId::derived(cause, "broker", 1));
        assert_ne!(id, EventId::derived(EventId::new(), "risk", 1));
        assert_eq!(
            id.as_bytes()[..6],
            cause.as_bytes()[..6],
            "ids stay in order of time"
        );
    }

    #[test]
    fn fresh_ids_rise_and_are_of_version_7() {
        let at = Timestamp::from_micros(1_582_197_540_000_000);
        let ids: Vec<_> = (0..10_000).map(|_| EventId::fresh(at)).collect();
        assert!(ids.is_sorted_by(|a, b| a < b));
        for id in [ids[0], ids[9_999], EventId::new()] {
            assert_eq!(id.0.get_version_num(), 7, "{id}");
            assert_eq!(id.0.get_variant(), uuid::Variant::RFC4122, "{id}");
        }
    }

    #[test]
    fn fresh_ids_begin_with_their_time() {
        let now = Timestamp::now();
        let ahead = Timestamp::from_micros(now.as_micros() + 3_600_000_000);
        let id = EventId::fresh(ahead);
        assert_eq!(id.as_bytes()[..6], millis(ahead).to_be_bytes()[2..]);
    }

    #[test]
    fn ids_from_keys_depend_on_time_and_key_alone() {
        let at = Timestamp::from_micros(1_582_197_540_000_000);
        assert_eq!(EventId::from_key(at, "a"), EventId::from_key(at, "a"));
        assert_ne!(EventId::from_key(at, "a"), EventId::from_key(at, "b"));
        // The time is part of the id's prefix, and no time is out of range.
        EventId::from_key(Timestamp::from_micros(i64::MIN), "a");
    }
}
