//! Aggregates that raise events as they change, to be published once that is kept.

use std::{
    collections::BTreeSet,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
};

use crate::NewEvent;

/// An aggregate root that raises events as it changes; they stay with it until a
/// [`UnitOfWork`](crate::UnitOfWork) collects them.
///
/// ```
/// use domain_events::{AggregateRoot, DomainEvent, RaisedEvents};
/// # #[derive(serde::Serialize, serde::Deserialize, DomainEvent)]
/// # #[domain_event(name = "shop.order-placed", aggregate = "order", id = order_id)]
/// # struct OrderPlaced { order_id: String }
/// #[derive(Default)]
/// struct Order { is_placed: bool, raised: RaisedEvents }
///
/// impl Order {
///     fn place(&mut self, order_id: &str) {
///         self.is_placed = true;
///         self.raised.raise(OrderPlaced { order_id: order_id.to_owned() });
///     }
/// }
///
/// impl AggregateRoot for Order {
///     fn raised(&mut self) -> &mut RaisedEvents { &mut self.raised }
/// }
/// # let mut order = Order::default();
/// # order.place("o-1");
/// # assert!(order.is_placed);
/// # order.raised().clear();
/// ```
pub trait AggregateRoot {
    /// The events that it has raised and nobody has collected.
    fn raised(&mut self) -> &mut RaisedEvents;
}

/// Events that were raised and are still to be published, in order.
///
/// Dropped with events in it, it says so in the log: somebody has forgotten to publish them, or to
/// [clear](Self::clear) what is not to be.
#[derive(Default)]
pub struct RaisedEvents {
    events: Vec<NewEvent>,
}

impl RaisedEvents {
    /// Adds an event. Its id, and the moment at which it happened, are those of now unless given:
    /// however often it is published from here on, it is one event (P6).
    pub fn raise(&mut self, event: impl Into<NewEvent>) {
        self.events.push(event.into().raised());
    }

    /// How many events there are.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Drops the events: they are not to be published.
    pub fn clear(&mut self) {
        self.events.clear();
    }

    /// Copies of the events, which are the same events wherever they are published.
    pub(crate) fn copies(&self) -> Vec<NewEvent> {
        self.events.clone()
    }

    /// Takes the events of another one, behind those that are there.
    pub(crate) fn collect(&mut self, other: &mut Self) {
        self.events.append(&mut other.events);
    }
}

impl fmt::Debug for RaisedEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let types = self.events.iter().map(NewEvent::event_type);
        f.debug_list().entries(types).finish()
    }
}

impl Drop for RaisedEvents {
    fn drop(&mut self) {
        if self.events.is_empty() {
            return;
        }
        // A logger is anybody's code: its panic would end the process where the drop is part of another
        // one, and so would that of the panic's drop.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.tell_dropped())) {
            std::mem::forget(panic);
        }
    }
}

impl RaisedEvents {
    fn tell_dropped(&self) {
        let types: BTreeSet<&str> = self.events.iter().map(NewEvent::event_type).collect();
        let types = types.into_iter().collect::<Vec<_>>().join(", ");
        let events = self.events.len();
        log::warn!(events, types = types.as_str(); "{events} raised events were dropped unpublished: {types}");
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{
        collections::BTreeMap,
        sync::{Mutex, Once},
    };

    use log::kv::{Key, Value, VisitSource};

    use super::*;
    use crate::{DomainEvent, UnitOfWork};

    #[derive(serde::Serialize, serde::Deserialize)]
    pub(crate) struct Rung(pub(crate) u64);

    impl DomainEvent for Rung {
        const EVENT_TYPE: &'static str = "test.rung";
        const AGGREGATE_TYPE: &'static str = "bell";

        fn aggregate_id(&self) -> std::borrow::Cow<'_, str> {
            "b".into()
        }
    }

    #[derive(Default)]
    struct Bell(RaisedEvents);

    impl AggregateRoot for Bell {
        fn raised(&mut self) -> &mut RaisedEvents {
            &mut self.0
        }
    }

    fn numbers(unit: &UnitOfWork) -> Vec<u64> {
        let number = |event: NewEvent| event.seal().typed::<Rung>().unwrap().0;
        unit.events().into_iter().map(number).collect()
    }

    #[test]
    fn events_are_collected_in_the_order_of_the_collecting() {
        let (mut first, mut second, mut unit) =
            (Bell::default(), Bell::default(), UnitOfWork::new());
        second.0.raise(Rung(3));
        first.0.raise(Rung(1));
        first.0.raise(Rung(2));
        unit.raise(Rung(0));
        unit.collect(&mut first);
        unit.collect(&mut second);
        assert_eq!(numbers(&unit), [0, 1, 2, 3]);
        assert!(first.0.is_empty() && second.0.is_empty());
        unit.collect(&mut first);
        assert_eq!(unit.len(), 4);
        unit.clear();
        assert!(unit.is_empty());
    }

    #[test]
    fn p6_a_raised_event_keeps_its_id_and_its_moment() {
        let mut unit = UnitOfWork::new();
        unit.raise(Rung(0));
        let [one, other] = [unit.events(), unit.events()].map(|mut all| all.remove(0).seal());
        assert_eq!(
            (one.id(), one.occurred_at()),
            (other.id(), other.occurred_at())
        );
        unit.clear();
        let (id, at) = (crate::EventId::new(), crate::Timestamp::from_micros(7));
        unit.raise(NewEvent::new(Rung(0)).id(id).occurred_at(at));
        let given = unit.events().remove(0).seal();
        assert_eq!((given.id(), given.occurred_at()), (id, at));
        unit.clear();
    }

    #[test]
    fn no_payload_is_told() {
        let mut raised = RaisedEvents::default();
        raised.raise(Rung(4_711));
        assert_eq!(format!("{raised:?}"), r#"["test.rung"]"#);
        raised.clear();
    }

    /// What was said of events that were dropped: the line, and its fields.
    static SAID: Mutex<Vec<(String, BTreeMap<String, String>)>> = Mutex::new(Vec::new());

    /// Of so many events no logger can tell.
    const UNSPEAKABLE: usize = 13;

    struct Listener;

    /// Gathers the fields of a line.
    #[derive(Default)]
    struct Fields(BTreeMap<String, String>);

    impl<'a> VisitSource<'a> for Fields {
        fn visit_pair(&mut self, key: Key<'a>, value: Value<'a>) -> Result<(), log::kv::Error> {
            self.0.insert(key.to_string(), value.to_string());
            Ok(())
        }
    }

    impl log::Log for Listener {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }

        fn log(&self, record: &log::Record<'_>) {
            let mut fields = Fields::default();
            record.key_values().visit(&mut fields).unwrap();
            let line = (record.args().to_string(), fields.0);
            assert_ne!(line.1["events"], UNSPEAKABLE.to_string());
            SAID.lock().unwrap().push(line);
        }

        fn flush(&self) {}
    }

    /// An aggregate that has raised so many events, before somebody who listens.
    fn heard(events: usize) -> Bell {
        static LISTEN: Once = Once::new();
        LISTEN.call_once(|| {
            log::set_logger(&Listener).unwrap();
            log::set_max_level(log::LevelFilter::Warn);
        });
        let mut bell = Bell::default();
        (0..events).for_each(|_| bell.0.raise(Rung(4_711)));
        bell
    }

    /// What was said of so many events.
    fn said(events: usize) -> Vec<(String, BTreeMap<String, String>)> {
        let said = SAID.lock().unwrap();
        let of = |line: &&(String, BTreeMap<_, _>)| line.1["events"] == events.to_string();
        said.iter().filter(of).cloned().collect()
    }

    #[test]
    fn what_is_forgotten_is_told_once_by_number_and_types() {
        drop(heard(17));
        let mut unit = UnitOfWork::new();
        unit.collect(&mut heard(19));
        drop(unit);
        for events in [17, 19] {
            let [(line, fields)] = &*said(events) else {
                panic!("not said once: {:?}", said(events))
            };
            assert!(
                line.contains("test.rung") && !line.contains("4711"),
                "{line}"
            );
            assert_eq!(fields["types"], "test.rung");
        }
        heard(23).0.clear();
        assert_eq!(said(23), []);
    }

    #[test]
    fn what_a_panic_drops_is_told_too() {
        let unwound = catch_unwind(|| {
            let _bell = heard(29);
            std::panic::resume_unwind(Box::new("while there are events"));
        });
        unwound.unwrap_err();
        assert_eq!(said(29).len(), 1);
    }

    #[test]
    fn a_logger_that_panics_ends_no_drop_and_no_process() {
        drop(heard(UNSPEAKABLE));
        let unwound = catch_unwind(|| {
            let _bell = heard(UNSPEAKABLE);
            panic!("while there are events");
        });
        unwound.unwrap_err();
    }
}
