//! Whether a program can read what is stored.

use domain_events::{DomainEvent, EventRegistry, NewEvent, Position};
use event_store_diesel::{SqliteEventStore, TypeFault};
use event_testkit::event_store::{Noted, append_all, noted};
use serde::{Deserialize, Serialize};

use crate::support::{fresh, sql};

#[derive(Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "test.old", aggregate = "notebook", id = notebook)]
struct Old {
    notebook: String,
}

/// The same type in a later program, which has lost what it reads.
#[derive(Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "test.old", aggregate = "notebook", id = notebook)]
struct Changed {
    notebook: String,
    pages: u32,
}

fn old() -> NewEvent {
    NewEvent::new(Old {
        notebook: "a".to_owned(),
    })
}

async fn found(store: &SqliteEventStore, registry: &EventRegistry) -> Vec<String> {
    let found = store.check_types(registry).await.unwrap();
    found.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn f7_types_that_are_known_and_readable_are_not_told() {
    let (store, _folder) = fresh();
    let mut registry = EventRegistry::new();
    assert!(found(&store, &registry).await.is_empty());
    append_all(&*store, [noted("a", "one"), old(), noted("b", "two")]).await;
    registry.register::<Noted>().unwrap();
    registry.register::<Old>().unwrap();
    assert!(found(&store, &registry).await.is_empty());
}

#[tokio::test]
async fn f7_every_type_that_could_not_be_handled_is_told_with_its_latest_event() {
    let (store, folder) = fresh();
    append_all(
        &*store,
        [noted("a", "one"), old(), noted("b", "two"), old(), old()],
    )
    .await;
    let mut registry = EventRegistry::new();
    registry.register::<Changed>().unwrap();
    let told = store.check_types(&registry).await.unwrap();
    assert!(matches!(
        &told[..],
        [noted, old] if matches!(noted.fault, TypeFault::Unknown)
            && (noted.event_type.as_str(), noted.sample) == (Noted::EVENT_TYPE, Position::new(3))
            && matches!(old.fault, TypeFault::Unreadable(_))
            && (old.event_type.as_str(), old.schema_version, old.sample) == ("test.old", 1, Position::new(5))
    ));
    registry.register::<Noted>().unwrap();
    let path = folder.path().join("events.db");
    sql(
        &path,
        "UPDATE de_events SET payload = x'00' WHERE position = 3",
    );
    let told = found(&store, &registry).await;
    assert_eq!(told.len(), 2);
    assert!(told[0].ends_with("at position 3: it could not be read: the stored event is damaged: its checksum does not match"));
}
