//! What is read: by position, by version, by id.

use std::sync::Arc;

use domain_events::{DecodeError, EventId, NewEvent, Position, Version};

use super::{
    FIRST, LAST, Noted, Store, Torn, append_all, notebook, noted, read_history, text, version,
};

/// By position, and short only at the end.
pub async fn the_log_is_read_in_pages(store: &impl Store) {
    append_all(store, (0..25).map(|number| noted(&number.to_string(), ""))).await;
    let (mut after, mut pages) = (Position::ZERO, Vec::new());
    loop {
        let page = store.read_log(after, 10).await.unwrap();
        pages.push(page.len());
        let Some(last) = page.last() else { break };
        let positions: Vec<u64> = page.iter().map(|it| it.position().unwrap().get()).collect();
        assert_eq!(
            positions,
            (after.get() + 1..=last.position().unwrap().get()).collect::<Vec<_>>()
        );
        after = last.position().unwrap();
    }
    assert_eq!(pages, [10, 10, 5, 0]);
    assert!(
        store
            .read_log(Position::new(u64::MAX), 10)
            .await
            .unwrap()
            .is_empty()
    );
    assert!(store.read_log(Position::ZERO, 0).await.unwrap().is_empty());
    assert_eq!(
        store
            .read_log(Position::ZERO, usize::MAX)
            .await
            .unwrap()
            .len(),
        25
    );
}

/// In order, both ends included, and no event of another aggregate.
pub async fn a_history_is_read_by_version(store: &impl Store) {
    let events = (0..20).map(|number| noted(["a", "b"][number % 2], &number.to_string()));
    append_all(store, events).await;
    let read = async |first, last, limit| {
        let versions = Version::new(first)..=Version::new(last);
        let history = read_history(store, "b", versions, limit).await;
        assert!(
            history
                .iter()
                .all(|event| *event.aggregate() == notebook("b"))
        );
        history.iter().map(version).collect::<Vec<_>>()
    };
    assert_eq!(read(1, 10, 100).await, (1..=10).collect::<Vec<u64>>());
    assert_eq!(read(0, u64::MAX, usize::MAX).await.len(), 10);
    assert_eq!(read(4, 6, 100).await, [4, 5, 6]);
    assert_eq!(read(4, 6, 2).await, [4, 5]);
    assert!(read(11, 20, 100).await.is_empty());
    assert!(
        read_history(store, "nobody", FIRST..=LAST, 9)
            .await
            .is_empty()
    );
}

/// Or is not there.
pub async fn an_event_is_found_by_its_id(store: &impl Store) {
    let id = EventId::new();
    append_all(
        store,
        [noted("a", "1"), noted("a", "2").id(id), noted("a", "3")],
    )
    .await;
    let found = store.get(id).await.unwrap().expect("in the log");
    assert_eq!(found.position(), Some(Position::new(2)));
    assert_eq!(text(found), "2");
    assert!(store.get(EventId::new()).await.unwrap().is_none());
}

/// What is read back has its type, and answers to no other.
pub async fn an_event_of_another_type_is_not_decoded(store: &impl Store) {
    append_all(
        store,
        [NewEvent::new(Torn {
            notebook: "a".to_owned(),
        })],
    )
    .await;
    let event = store.read_log(Position::ZERO, 1).await.unwrap().remove(0);
    let event = Arc::new(event);
    assert!(matches!(
        event.typed::<Noted>(),
        Err(DecodeError::OtherType { .. })
    ));
    assert_eq!(event.typed::<Torn>().unwrap().notebook, "a");
}
