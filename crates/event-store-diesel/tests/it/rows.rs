//! Every column of an event, from the append to the read.

use std::sync::Arc;

use domain_events::{EventEnvelope, EventId, EventMetadata, EventStore, Position, Timestamp};
use event_testkit::event_store::{Noted, batch, noted};

use crate::support::fresh;

#[tokio::test]
async fn events_that_share_a_statement_keep_each_its_own() {
    let (store, _folder) = fresh();
    let cause = EventId::new();
    let event = |number: usize| {
        let event = noted(["a", "b", "c"][number % 3], &"x".repeat(number * number));
        let event = match number % 4 {
            0 => event.metadata("number", number.to_string()),
            _ => event,
        };
        match number % 5 {
            0 => event.causation_id(cause),
            _ => event,
        }
    };
    // One of each number of rows that a statement has, and some whose payloads are too large to wait.
    let sealed: Vec<_> = (0..16 + 4 + 3).chain(300..303).map(event).collect();
    let batch: Vec<_> = batch(sealed);
    let given: Vec<_> = batch.iter().map(|it| row(&it.event)).collect();
    store.append(batch).await.unwrap();
    let found = store.read_log(Position::ZERO, 100).await.unwrap();
    assert_eq!(found.iter().map(row).collect::<Vec<_>>(), given);
    for event in found.into_iter().map(Arc::new) {
        event.typed::<Noted>().unwrap();
    }
}

type Row = (EventId, String, EventMetadata, Timestamp, Vec<u8>);

fn row(event: &EventEnvelope) -> Row {
    (
        event.id(),
        event.aggregate().to_string(),
        event.metadata().clone(),
        event.occurred_at(),
        event.payload().unwrap().to_vec(),
    )
}
