//! Deliveries that are made in a transaction of the store: each is over once, and committed with its
//! progress (R7). A store without connections for handlers makes none.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use domain_events::{
    BlockedAggregate, DeliveryChange, Kept, Position, Progress, SubscriptionId, SubscriptionState,
    TransactionError, TransactionalDeliveries, TransactionalDelivery, TransactionalEnd,
    TransactionalEnds, Version,
};

use super::{
    Store, append_all,
    deliveries::{begin, change, waiting},
    notebook, noted,
};

/// How often handlers were called.
type Calls = Arc<AtomicUsize>;

/// A delivery of the notebook `a`, whose handler says `kept`.
fn delivery(position: u64, kept: Kept, calls: &Calls) -> TransactionalDelivery {
    let calls = Arc::clone(calls);
    TransactionalDelivery {
        position: Position::new(position),
        aggregate: notebook("a"),
        version: Version::new(position),
        work: Box::new(move |_| {
            calls.fetch_add(1, SeqCst);
            kept
        }),
    }
}

async fn make(
    store: &impl Store,
    subscription: SubscriptionId,
    unfinished: &[u64],
    runs: Vec<Vec<TransactionalDelivery>>,
) -> Result<TransactionalEnds, TransactionError> {
    let deliveries = TransactionalDeliveries {
        subscription,
        progress: progress(5, unfinished),
        runs,
    };
    let (send, receive) = tokio::sync::oneshot::channel();
    let done = move |ends| drop(send.send(ends));
    store.submit_transaction(deliveries, Box::new(done));
    receive.await.expect("answered")
}

fn progress(through: u64, unfinished: &[u64]) -> Progress {
    Progress {
        through: Position::new(through),
        unfinished: unfinished.iter().copied().map(Position::new).collect(),
    }
}

/// Five events, and a subscription from before them; `None` for a store that has no connections.
async fn five(store: &impl Store) -> Option<SubscriptionId> {
    store.connection_type()?;
    let one = begin(store, &["one"]).await.subscriptions[0].id;
    append_all(store, (0..5).map(|_| noted("a", ""))).await;
    Some(one)
}

async fn state(store: &impl Store) -> SubscriptionState {
    begin(store, &["one"]).await.subscriptions.remove(0)
}

/// Behind one that failed nothing of its run is made; other runs are.
pub async fn r7_what_is_over_is_taken_out_of_the_progress(store: &impl Store) {
    use TransactionalEnd::{Failed, NotMade, Over};
    let Some(one) = five(store).await else { return };
    let calls = Calls::default();
    let runs = vec![
        vec![
            delivery(1, Kept::All, &calls),
            delivery(2, Kept::Failed, &calls),
            delivery(3, Kept::All, &calls),
        ],
        vec![delivery(4, Kept::Nothing, &calls)],
    ];
    let made = make(store, one, &[1, 2, 3, 4, 5], runs).await.unwrap();
    assert_eq!(made.runs, [vec![Over, Failed, NotMade], vec![Over]]);
    assert_eq!(made.head, Position::new(5));
    assert_eq!(calls.load(SeqCst), 3);
    assert_eq!(state(store).await.progress, progress(5, &[2, 3, 5]));
}

/// As after a commit of which nobody knew whether it was made.
pub async fn r7_what_is_over_is_not_made_again(store: &impl Store) {
    let Some(one) = five(store).await else { return };
    let calls = Calls::default();
    for end in [TransactionalEnd::Over, TransactionalEnd::OverBefore] {
        let runs = vec![vec![delivery(2, Kept::All, &calls)]];
        let made = make(store, one, &[2, 3], runs).await.unwrap();
        assert_eq!(made.runs, [[end]]);
        assert_eq!(state(store).await.progress, progress(5, &[3]));
    }
    assert_eq!(calls.load(SeqCst), 1);
}

/// A delivery for which a row stands is not over, and its row goes with it.
pub async fn r7_what_is_over_is_taken_out_of_its_rows(store: &impl Store) {
    let Some(one) = five(store).await else { return };
    let blocked = BlockedAggregate {
        aggregate: notebook("a"),
        from: Position::new(2),
        version: Version::new(2),
        parked_behind: None,
    };
    let rows = vec![
        DeliveryChange::Progressed(one, progress(5, &[])),
        DeliveryChange::Waiting(one, waiting(2, 1)),
        DeliveryChange::Blocked(one, blocked.clone()),
    ];
    change(store, rows).await.unwrap();
    let calls = Calls::default();
    for (position, kept) in [(2, Kept::Failed), (2, Kept::All), (3, Kept::All)] {
        let runs = vec![vec![delivery(position, kept, &calls)]];
        make(store, one, &[], runs).await.unwrap();
        let state = state(store).await;
        let from = match kept {
            Kept::Failed => position,
            _ => position + 1,
        };
        let moved = BlockedAggregate {
            from: Position::new(from),
            version: Version::new(from),
            ..blocked.clone()
        };
        assert_eq!(state.blocked, [moved]);
        assert_eq!(state.waiting.len(), usize::from(kept == Kept::Failed));
        assert_eq!(state.progress, progress(5, &[]));
    }
    // What is before the block is over.
    let runs = vec![vec![delivery(2, Kept::All, &calls)]];
    let made = make(store, one, &[], runs).await.unwrap();
    assert_eq!(made.runs, [[TransactionalEnd::OverBefore]]);
    assert_eq!(calls.load(SeqCst), 3);
}

/// A panic is a failure, and nobody else's.
pub async fn r7_a_panic_is_a_failure(store: &impl Store) {
    let Some(one) = five(store).await else { return };
    let calls = Calls::default();
    let panics = TransactionalDelivery {
        work: Box::new(|_| panic!("on purpose")),
        ..delivery(1, Kept::All, &calls)
    };
    let runs = vec![vec![panics], vec![delivery(2, Kept::All, &calls)]];
    let made = make(store, one, &[1, 2], runs).await.unwrap();
    let (failed, over) = (TransactionalEnd::Failed, TransactionalEnd::Over);
    assert_eq!(made.runs, [[failed], [over]]);
    assert_eq!(state(store).await.progress, progress(5, &[1]));
}

/// Nothing is called where what is to be saved makes no sense.
pub async fn r7_progress_that_makes_no_sense_is_refused(store: &impl Store) {
    let Some(one) = five(store).await else { return };
    let calls = Calls::default();
    for unfinished in [&[2, 1][..], &[1, 1], &[6]] {
        let runs = vec![vec![delivery(1, Kept::All, &calls)]];
        let made = make(store, one, unfinished, runs).await;
        assert!(matches!(made, Err(TransactionError::NotCommitted(_))));
    }
    assert_eq!(calls.load(SeqCst), 0);
}

/// Nothing is called for nobody.
pub async fn r7_an_unknown_subscription_has_no_deliveries(store: &impl Store) {
    if five(store).await.is_none() {
        return;
    }
    let calls = Calls::default();
    let runs = vec![vec![delivery(1, Kept::All, &calls)]];
    let unknown = SubscriptionId::new(77);
    let made = make(store, unknown, &[1], runs).await;
    assert!(matches!(made, Err(TransactionError::NotCommitted(_))));
    assert_eq!(calls.load(SeqCst), 0);
}
