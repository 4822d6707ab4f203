//! Deliveries given up and kept for a person: which there are, and what they have in common (F6).

use std::{fmt, ops::RangeInclusive, sync::Arc};

use crate::{AggregateRef, EventEnvelope, EventId, Position, Timestamp};

/// Why a delivery was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeadLetterReason {
    /// The last allowed attempt failed.
    AttemptsExhausted,
    /// The handler said that it will never succeed.
    Permanent,
    /// The event could not be read.
    Unreadable,
    /// It was found running at three unclean ends in a row: its handler may end the process (F4).
    Crashed,
}

impl DeadLetterReason {
    /// The reason as stored.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AttemptsExhausted => "attempts-exhausted",
            Self::Permanent => "permanent",
            Self::Unreadable => "unreadable",
            Self::Crashed => "crashed",
        }
    }

    /// The reason that is stored as `text`.
    pub fn parse(text: &str) -> Option<Self> {
        let all = [
            Self::AttemptsExhausted,
            Self::Permanent,
            Self::Unreadable,
            Self::Crashed,
        ];
        all.into_iter().find(|reason| reason.as_str() == text)
    }
}

/// A delivery given up, kept for a person.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// Its number in the order in which letters were kept, from 1; zero as long as it is not. One that is
    /// replayed and dies again is another letter, with a number of its own.
    pub number: u64,
    /// The name of the subscription.
    pub subscription: Arc<str>,
    /// The event, whole, with its raw payload.
    pub event: Arc<EventEnvelope>,
    /// Why it was given up.
    pub reason: DeadLetterReason,
    /// How many attempts were made.
    pub attempts: u32,
    /// Why the last attempt failed; at most 4 KiB.
    pub error: String,
    /// When the first attempt began.
    pub first_attempt_at: Timestamp,
    /// When it was given up.
    pub dead_at: Timestamp,
}

impl DeadLetter {
    /// The event's id.
    pub fn event_id(&self) -> EventId {
        self.event.id()
    }

    /// The event's place in the log; `None` on a volatile bus.
    pub fn position(&self) -> Option<Position> {
        self.event.position()
    }
}

/// Two letters are equal where everything is but, perhaps, their numbers and what their events hold.
impl PartialEq for DeadLetter {
    fn eq(&self, other: &Self) -> bool {
        let key = |it: &Self| {
            let times = (it.first_attempt_at, it.dead_at);
            (it.event_id(), it.position(), it.reason, it.attempts, times)
        };
        key(self) == key(other)
            && (&self.subscription, &self.error) == (&other.subscription, &other.error)
    }
}

impl Eq for DeadLetter {}

/// Which dead letters are meant: those that meet every condition; without any, all.
///
/// ```
/// use domain_events::DeadLetterQuery;
/// let one_group = DeadLetterQuery::of("invoices").error("the printer is on fire");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeadLetterQuery {
    /// Those of the subscription with this name.
    pub subscription: Option<Arc<str>>,
    /// The one of this event.
    pub event: Option<EventId>,
    /// Those of events of the type with this name.
    pub event_type: Option<Arc<str>>,
    /// Those of events of this aggregate.
    pub aggregate: Option<AggregateRef>,
    /// Those whose last attempt failed with exactly this text.
    pub error: Option<Arc<str>>,
    /// Those given up in this time, both ends included.
    pub dead_at: Option<RangeInclusive<Timestamp>>,
    /// Those with a greater number than this.
    pub after: u64,
}

impl DeadLetterQuery {
    /// All there are.
    pub fn all() -> Self {
        Self::default()
    }

    /// Those of one subscription.
    pub fn of(subscription: impl Into<Arc<str>>) -> Self {
        Self {
            subscription: Some(subscription.into()),
            ..Self::default()
        }
    }

    /// The one of this event.
    #[must_use]
    pub fn event(self, event: EventId) -> Self {
        let event = Some(event);
        Self { event, ..self }
    }

    /// Those of events of one type.
    #[must_use]
    pub fn event_type(self, event_type: impl Into<Arc<str>>) -> Self {
        Self {
            event_type: Some(event_type.into()),
            ..self
        }
    }

    /// Those of events of one aggregate.
    #[must_use]
    pub fn aggregate(self, aggregate: AggregateRef) -> Self {
        Self {
            aggregate: Some(aggregate),
            ..self
        }
    }

    /// Those whose last attempt failed with exactly this text.
    #[must_use]
    pub fn error(self, error: impl Into<Arc<str>>) -> Self {
        Self {
            error: Some(error.into()),
            ..self
        }
    }

    /// Those given up in this time, both ends included.
    #[must_use]
    pub fn dead_at(self, times: RangeInclusive<Timestamp>) -> Self {
        Self {
            dead_at: Some(times),
            ..self
        }
    }

    /// Those that were kept after this one, for the next page of a list.
    #[must_use]
    pub fn after(self, letter: &DeadLetter) -> Self {
        let after = letter.number;
        Self { after, ..self }
    }

    /// Whether `letter` is meant.
    pub fn matches(&self, letter: &DeadLetter) -> bool {
        let DeadLetter { event, error, .. } = letter;
        let is = |wanted: &Option<Arc<str>>, actual: &str| {
            wanted.as_ref().is_none_or(|wanted| **wanted == *actual)
        };
        let (aggregate, times) = (self.aggregate.as_ref(), self.dead_at.as_ref());
        is(&self.subscription, &letter.subscription)
            && self.event.is_none_or(|wanted| wanted == event.id())
            && is(&self.event_type, event.event_type())
            && is(&self.error, error)
            && aggregate.is_none_or(|wanted| wanted == event.aggregate())
            && times.is_none_or(|times| times.contains(&letter.dead_at))
            && (self.after == 0 || letter.number > self.after)
    }
}

/// The conditions, in the words of a log; `all` where there is none.
impl fmt::Display for DeadLetterQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named =
            |name: &'static str, value: Option<String>| value.map(|it| format!("{name} {it}"));
        let text = |text: &Option<Arc<str>>| text.as_ref().map(|it| format!("{it:?}"));
        let times = self.dead_at.as_ref();
        let conditions = [
            named("of", text(&self.subscription)),
            named("event", self.event.map(|it| it.to_string())),
            named("type", text(&self.event_type)),
            named(
                "aggregate",
                self.aggregate.as_ref().map(ToString::to_string),
            ),
            named("error", text(&self.error)),
            named("from", times.map(|it| it.start().to_string())),
            named("to", times.map(|it| it.end().to_string())),
            named("after", (self.after > 0).then(|| self.after.to_string())),
        ];
        let conditions: Vec<String> = conditions.into_iter().flatten().collect();
        match conditions.is_empty() {
            true => f.write_str("all"),
            false => f.write_str(&conditions.join(", ")),
        }
    }
}

/// Dead letters of one subscription whose last attempts failed alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterGroup {
    /// The name of the subscription.
    pub subscription: Arc<str>,
    /// The error they have in common.
    pub error: Arc<str>,
    /// How many there are.
    pub letters: u64,
    /// When the first and the last of them were given up.
    pub dead_at: RangeInclusive<Timestamp>,
}

impl DeadLetterGroup {
    /// The groups of `letters`, in the order of the first letter of each.
    pub fn of<'a>(letters: impl IntoIterator<Item = &'a DeadLetter>) -> Vec<Self> {
        let mut groups: Vec<Self> = Vec::new();
        let mut places = std::collections::HashMap::new();
        for letter in letters {
            let key = (&*letter.subscription, &*letter.error);
            let place = *places.entry(key).or_insert(groups.len());
            match groups.get_mut(place) {
                Some(group) => group.add(letter),
                None => groups.push(Self {
                    subscription: Arc::clone(&letter.subscription),
                    error: letter.error.as_str().into(),
                    letters: 1,
                    dead_at: letter.dead_at..=letter.dead_at,
                }),
            }
        }
        groups
    }

    fn add(&mut self, letter: &DeadLetter) {
        self.letters += 1;
        let (first, last) = (*self.dead_at.start(), *self.dead_at.end());
        self.dead_at = first.min(letter.dead_at)..=last.max(letter.dead_at);
    }

    /// The letters of the group, for [replaying](crate::EventBus::replay_all) or
    /// [discarding](crate::EventBus::discard_all) them.
    pub fn query(&self) -> DeadLetterQuery {
        DeadLetterQuery::of(Arc::clone(&self.subscription)).error(Arc::clone(&self.error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CorrelationId, EventMetadata, Recorded, Urgency, Version};

    fn letter(subscription: &str, aggregate: &str, error: &str, dead_at: i64) -> DeadLetter {
        let id = EventId::new();
        let metadata = EventMetadata {
            correlation_id: CorrelationId::from(id),
            causation_id: None,
            entries: Default::default(),
        };
        let recorded = Recorded {
            position: Position::FIRST,
            version: Version::FIRST,
            at: Timestamp::from_micros(0),
        };
        let event = EventEnvelope::from_log(
            id,
            &"shop.placed".into(),
            1,
            AggregateRef::new("order", aggregate),
            Urgency::Normal,
            metadata,
            recorded.at,
            recorded,
            Box::default(),
        );
        DeadLetter {
            number: dead_at as u64,
            subscription: subscription.into(),
            event: Arc::new(event),
            reason: DeadLetterReason::Permanent,
            attempts: 1,
            error: error.to_owned(),
            first_attempt_at: recorded.at,
            dead_at: Timestamp::from_micros(dead_at),
        }
    }

    #[test]
    fn f6_a_query_means_what_meets_every_condition() {
        let one = letter("mail", "o-1", "bounced", 5);
        let time = |from, to| Timestamp::from_micros(from)..=Timestamp::from_micros(to);
        let meant = [
            DeadLetterQuery::all(),
            DeadLetterQuery::all().after(&letter("mail", "o-1", "bounced", 4)),
            DeadLetterQuery::of("mail").event_type("shop.placed"),
            DeadLetterQuery::all().aggregate(AggregateRef::new("order", "o-1")),
            DeadLetterQuery::of("mail").event(one.event_id()),
            DeadLetterQuery::of("mail")
                .error("bounced")
                .dead_at(time(5, 5)),
        ];
        let not_meant = [
            DeadLetterQuery::of("post"),
            DeadLetterQuery::of("mail").event_type("shop.paid"),
            DeadLetterQuery::all().aggregate(AggregateRef::new("order", "o-2")),
            DeadLetterQuery::of("mail").error("bounce"),
            DeadLetterQuery::of("mail").event(EventId::new()),
            DeadLetterQuery::of("mail").dead_at(time(6, 9)),
            DeadLetterQuery::of("mail").after(&one),
        ];
        let told: Vec<_> = meant.iter().map(ToString::to_string).collect();
        assert_eq!(told[0], "all");
        assert_eq!(told[2], "of \"mail\", type \"shop.placed\"");
        assert_eq!(
            told[5],
            "of \"mail\", error \"bounced\", from 1970-01-01T00:00:00.000005Z, to 1970-01-01T00:00:00.000005Z"
        );
        assert!(meant.iter().all(|query| query.matches(&one)));
        assert!(!not_meant.iter().any(|query| query.matches(&one)));
    }

    #[test]
    fn f6_a_group_is_a_subscription_and_an_error() {
        let letters = [
            letter("mail", "o-1", "bounced", 5),
            letter("post", "o-1", "bounced", 6),
            letter("mail", "o-2", "bounced", 3),
            letter("mail", "o-3", "full", 8),
        ];
        let groups = DeadLetterGroup::of(&letters);
        let told = |group: &DeadLetterGroup| {
            let meant = letters.iter().filter(|it| group.query().matches(it));
            assert_eq!(meant.count() as u64, group.letters);
            (
                group.subscription.to_string(),
                group.error.to_string(),
                group.letters,
            )
        };
        let expected = [
            ("mail", "bounced", 2),
            ("post", "bounced", 1),
            ("mail", "full", 1),
        ];
        let expected = expected.map(|(name, error, count)| (name.into(), error.into(), count));
        assert_eq!(groups.iter().map(told).collect::<Vec<_>>(), expected);
        let times = Timestamp::from_micros(3)..=Timestamp::from_micros(5);
        assert_eq!(groups[0].dead_at, times);
    }
}
