//! What a store says of all it holds: counts, first and last, what is unfinished.

use std::collections::BTreeMap;

use domain_events::{
    BlockedAggregate, DeliveryChange, EventQuery, EventSummary, NewEvent, Position, Progress,
    StoreStatistics, SubscriptionId, Version,
};

use super::deliveries::{begin, change, waiting};
use super::{Store, Torn, append_all, assert_each_is_itself, notebook, noted};

async fn unfinished(store: &impl Store) -> Vec<u64> {
    let query = EventQuery::Unfinished;
    let page = store.read(&query, Position::ZERO, 100).await.unwrap();
    assert_each_is_itself(store, &page).await;
    let positions = page.iter().map(|event| event.position().unwrap().get());
    let positions: Vec<u64> = positions.collect();
    let statistics = store.statistics().await.unwrap();
    assert_eq!(statistics.unfinished(), positions.len() as u64);
    let summary = store.summary(&query).await.unwrap();
    let ends = [summary.first, summary.last].map(|it| it.map(|it| it.position.get()));
    let expected = [positions.first(), positions.last()];
    assert_eq!(ends, expected.map(Option::<&u64>::copied));
    positions
}

pub(super) async fn progressed(
    store: &impl Store,
    id: SubscriptionId,
    through: u64,
    unfinished: &[u64],
) {
    let progress = Progress {
        through: Position::new(through),
        unfinished: unfinished.iter().copied().map(Position::new).collect(),
    };
    let changes = vec![DeliveryChange::Progressed(id, progress)];
    change(store, changes).await.unwrap();
}

/// Of nothing there is nothing, and no first or last.
pub async fn statistics_of_an_empty_store_are_zero(store: &impl Store) {
    assert_eq!(without_size(store).await, StoreStatistics::default());
}

/// The statistics but for the size, which is the store's own.
async fn without_size(store: &impl Store) -> StoreStatistics {
    let statistics = store.statistics().await.unwrap();
    StoreStatistics {
        size: None,
        ..statistics
    }
}

/// In all, by type, and by aggregate.
pub async fn statistics_add_up(store: &impl Store) {
    let torn = NewEvent::new(Torn {
        notebook: "c".to_owned(),
    });
    append_all(store, [noted("a", ""), noted("b", ""), noted("a", "")]).await;
    append_all(store, [torn]).await;
    let log = store.read_log(Position::ZERO, 10).await.unwrap();
    let expected = StoreStatistics {
        log: EventSummary {
            events: 4,
            first: log[0].recorded(),
            last: log[3].recorded(),
        },
        pruned_through: Position::ZERO,
        finished: 4,
        by_type: BTreeMap::from([
            ("testkit.noted".to_owned(), 3),
            ("testkit.torn".to_owned(), 1),
        ]),
        aggregates: 3,
        size: None,
    };
    assert_eq!(without_size(store).await, expected);
}

/// Whatever some subscription has not looked at, not finished, waits for or has blocked.
pub async fn what_is_unfinished_is_read_and_counted(store: &impl Store) {
    append_all(store, (0..4).flat_map(|_| [noted("a", ""), noted("b", "")])).await;
    // Nobody waits for them.
    assert!(unfinished(store).await.is_empty());
    let ids = begin(store, &["one", "two"]).await.subscriptions;
    let (one, two) = (ids[0].id, ids[1].id);
    append_all(store, [noted("a", ""), noted("b", "")]).await;
    assert_eq!(unfinished(store).await, [9, 10]);

    progressed(store, one, 10, &[3]).await;
    assert_eq!(unfinished(store).await, [3, 9, 10]);
    progressed(store, two, 9, &[3, 9]).await;
    assert_eq!(unfinished(store).await, [3, 9, 10]);
    progressed(store, two, 10, &[]).await;
    assert_eq!(unfinished(store).await, [3]);
    progressed(store, one, 10, &[]).await;

    let waits = DeliveryChange::Waiting(two, waiting(5, 1));
    let blocked = BlockedAggregate {
        parked_behind: None,
        aggregate: notebook("b"),
        from: Position::new(6),
        version: Version::new(3),
    };
    let blocks = DeliveryChange::Blocked(one, blocked);
    change(store, vec![waits, blocks]).await.unwrap();
    assert_eq!(unfinished(store).await, [5, 6, 8, 10]);
    let query = EventQuery::Unfinished;
    let page = store.read(&query, Position::new(5), 2).await.unwrap();
    assert_eq!(page.len(), 2);
    assert_eq!(page[0].position(), Some(Position::new(6)));

    // One that is not in the log is no event.
    let waits = DeliveryChange::Waiting(two, waiting(99, 1));
    let far = DeliveryChange::Progressed(
        two,
        Progress {
            through: Position::new(100),
            unfinished: vec![Position::new(98)],
        },
    );
    change(store, vec![waits, far]).await.unwrap();
    assert_eq!(unfinished(store).await, [5, 6, 8, 10]);

    let finished = DeliveryChange::Finished(two, Position::new(5));
    let unblocked = DeliveryChange::Unblocked(one, notebook("b"));
    change(store, vec![finished, unblocked]).await.unwrap();
    assert!(unfinished(store).await.is_empty());
}
