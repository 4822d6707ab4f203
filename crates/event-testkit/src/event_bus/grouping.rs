//! Dead letters by what they have in common: found, grouped, and settled as one (F6).

use std::time::Duration;

use domain_events::{
    AggregateRef, DeadLetter, DeadLetterQuery, Event, HandlerContext, HandlerError, LetterError,
    Subscription, Timestamp,
};

use super::{BusHarness, Followed, Journal, Noted, answering, followed, noted, soon, started};

/// F6: letters are found by what they have in common, and told in groups by subscription and error.
pub async fn f6_letters_are_found_and_grouped(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let journal = Journal::default();
    let refuses = answering("refuses", &journal, |number, _| {
        Err(HandlerError::permanent(
            ["odd", "even"][usize::from(number % 2 == 0)],
        ))
    });
    let hears = Subscription::from_fn("hears", |_: Event<Followed>, _| async {
        Err(HandlerError::permanent("odd"))
    });
    started(&bus, [refuses, hears]).await;
    let before = Timestamp::now();
    for number in 0..5 {
        let aggregate = format!("a{}", number % 2);
        bus.publish(noted(aggregate, number)).await.unwrap();
    }
    soon(bus.wait_idle()).await.unwrap();
    let between = Timestamp::now();
    while Timestamp::now() <= between {
        std::hint::spin_loop();
    }
    bus.publish(followed("a0", 9)).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    let numbers = async |query: DeadLetterQuery| {
        let letters = bus.dead_letters(&query, 10).await.unwrap();
        let number = |letter: &DeadLetter| {
            let noted = letter.event.typed::<Noted>().map(|event| event.number);
            noted.unwrap_or_else(|_| letter.event.typed::<Followed>().unwrap().number)
        };
        letters.iter().map(number).collect::<Vec<_>>()
    };
    let all = DeadLetterQuery::all;
    let a0 = AggregateRef::new("notebook", "a0");
    assert_eq!(numbers(all()).await, [0, 1, 2, 3, 4, 9]);
    assert_eq!(numbers(all().event_type("testkit.followed")).await, [9]);
    assert_eq!(numbers(all().event_type("testkit.nothing")).await, [0; 0]);
    assert_eq!(numbers(all().aggregate(a0.clone())).await, [0, 2, 4, 9]);
    assert_eq!(
        numbers(DeadLetterQuery::of("refuses").aggregate(a0)).await,
        [0, 2, 4]
    );
    assert_eq!(
        numbers(all().aggregate(AggregateRef::new("notebook", "b"))).await,
        [0; 0]
    );
    assert_eq!(numbers(all().error("odd")).await, [1, 3, 9]);
    assert_eq!(
        numbers(DeadLetterQuery::of("hears").error("odd")).await,
        [9]
    );
    assert_eq!(
        numbers(all().dead_at(before..=between)).await,
        [0, 1, 2, 3, 4]
    );
    let later = Timestamp::from_micros(i64::MAX);
    assert_eq!(numbers(all().dead_at(later..=later)).await, [0; 0]);
    let groups = bus.dead_letter_groups(&all()).await.unwrap();
    let told = groups
        .iter()
        .map(|it| (&*it.subscription, &*it.error, it.letters));
    let expected = [
        ("refuses", "even", 3),
        ("refuses", "odd", 2),
        ("hears", "odd", 1),
    ];
    assert_eq!(told.collect::<Vec<_>>(), expected);
    let payload = bus.dead_letters(&all(), 1).await.unwrap().remove(0).event;
    assert_eq!(
        payload.payload().unwrap(),
        br#"{"aggregate":"a0","number":0}"#
    );
}

/// F6: all letters of a query are written, however many, a line of JSON each.
pub async fn f6_letters_are_exported(harness: &dyn BusHarness) {
    const LETTERS: u64 = 250;
    let bus = harness.bus(500, 1);
    let refuses = answering("refuses", &Journal::default(), |_, _| {
        Err(HandlerError::permanent("two\nlines"))
    });
    let other = answering("other", &Journal::default(), |_, _| {
        Err(HandlerError::permanent("other"))
    });
    started(&bus, [refuses, other]).await;
    let events = (0..LETTERS).map(|number| noted("a", number)).collect();
    bus.publish_all(events).await.unwrap();
    soon(bus.wait_idle()).await.unwrap();
    let mut out = Vec::new();
    let query = DeadLetterQuery::of("refuses");
    let written = bus.export_dead_letters(&query, &mut out).await.unwrap();
    let lines = String::from_utf8(out).unwrap();
    let letters: Vec<serde_json::Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!((written, letters.len() as u64), (LETTERS, LETTERS));
    for (number, letter) in (0..).zip(&letters) {
        assert_eq!(letter["subscription"], "refuses");
        assert_eq!(letter["error"], "two\nlines");
        let payload: Noted = serde_json::from_value(letter["payload"].clone()).unwrap();
        assert_eq!(payload.number, number);
    }

    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let failed = bus.export_dead_letters(&query, &mut Full).await;
    assert!(
        matches!(failed, Err(domain_events::ExportError::Write(_))),
        "{failed:?}"
    );
}

/// F6: a group, or all, are replayed in order or discarded in one step.
pub async fn f6_a_group_is_replayed_or_discarded_as_one(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let journal = Journal::default();
    let log = journal.clone();
    let once = Subscription::from_fn("once", move |event: Event<Noted>, cx: HandlerContext| {
        let is_replay = cx.info().is_replay;
        if is_replay {
            log.write("replayed", event.number);
        }
        async move {
            match (event.number, is_replay) {
                (5, _) => Err(HandlerError::permanent("five")),
                (_, true) => Ok(()),
                (number, _) => Err(HandlerError::permanent(
                    ["odd", "even"][usize::from(number % 2 == 0)],
                )),
            }
        }
    });
    started(&bus, [once]).await;
    for number in 0..8 {
        bus.publish(noted("a", number)).await.unwrap();
    }
    soon(bus.wait_idle()).await.unwrap();
    let groups = bus
        .dead_letter_groups(&DeadLetterQuery::all())
        .await
        .unwrap();
    let even = groups.iter().find(|group| &*group.error == "even").unwrap();
    assert_eq!(bus.replay_all(&even.query()).await.unwrap(), 4);
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("replayed"), [0, 2, 4, 6]);
    let odd = DeadLetterQuery::of("once").error("odd");
    assert_eq!(bus.discard_all(&odd, "of no use").await.unwrap(), 3);
    assert_eq!(bus.discard_all(&odd, "of no use").await.unwrap(), 0);
    let all = DeadLetterQuery::all();
    assert_eq!(bus.replay_all(&all).await.unwrap(), 1);
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("replayed"), [0, 2, 4, 6, 5]);
    assert_eq!(
        bus.dead_letters(&all, 10).await.unwrap().len(),
        1,
        "it died again"
    );
    assert!(soon(bus.unsubscribe("once")).await);
    let error = bus.replay_all(&all).await.unwrap_err();
    assert!(
        matches!(&error, LetterError::NoSuchSubscription { subscription } if subscription == "once"),
        "{error:?}"
    );
    assert_eq!(
        bus.dead_letters(&all, 10).await.unwrap().len(),
        1,
        "it stays"
    );
    soon(bus.stop(Duration::ZERO)).await.unwrap();
    let error = bus.replay_all(&all).await.unwrap_err();
    assert!(matches!(error, LetterError::NotRunning), "{error:?}");
}

/// F6: all are replayed that are meant, or none: not where one of them has no subscription any more.
pub async fn f6_all_are_replayed_or_none(harness: &dyn BusHarness) {
    let bus = harness.bus(100, 1);
    let journal = Journal::default();
    let dies = |name| answering(name, &journal, |_, _| Err(HandlerError::permanent("never")));
    started(&bus, [dies("stays"), dies("goes")]).await;
    for number in 0..3 {
        bus.publish(noted("a", number)).await.unwrap();
        soon(bus.wait_idle()).await.unwrap();
    }
    assert!(soon(bus.unsubscribe("goes")).await);
    let all = DeadLetterQuery::all();
    let error = bus.replay_all(&all).await.unwrap_err();
    assert!(
        matches!(&error, LetterError::NoSuchSubscription { subscription } if subscription == "goes"),
        "{error:?}"
    );
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("stays"), [0, 1, 2], "none came again");
    assert_eq!(bus.dead_letters(&all, 10).await.unwrap().len(), 6);
    assert_eq!(
        bus.replay_all(&DeadLetterQuery::of("stays")).await.unwrap(),
        3
    );
    soon(bus.wait_idle()).await.unwrap();
    assert_eq!(journal.of("stays"), [0, 1, 2, 0, 1, 2]);
}
