//! The system as its builder makes it.

use std::{error::Error, sync::Arc, time::Duration};

use event_store_diesel::OpenError;
use event_system::{
    BusConfig, Config, DomainEvent, Event, EventSystem, HandlerContext, HandlerError, Priority,
    Store, Subscription, SystemError,
    domain_events::{EventBus, PublishError, SubscribeError},
};
use serde::{Deserialize, Serialize};
use tempfile::tempdir;

#[derive(Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "test.pinged", aggregate = "host", id = host)]
struct Pinged {
    host: String,
}

/// Another type under the same name.
#[derive(Serialize, Deserialize, DomainEvent)]
#[domain_event(name = "test.pinged", aggregate = "host", id = host)]
struct PingedToo {
    host: String,
}

fn pinged() -> Pinged {
    Pinged {
        host: "a".to_owned(),
    }
}

async fn ignore<E>(_: Event<E>, _: HandlerContext) -> Result<(), HandlerError> {
    Ok(())
}

/// What an error says, with its causes.
fn chain(error: &dyn Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", chain(cause)),
        None => error.to_string(),
    }
}

#[tokio::test]
async fn a_volatile_system_needs_no_store() {
    let system = EventSystem::builder()
        .on("ping", Priority::NORMAL, ignore::<Pinged>)
        .start()
        .await
        .unwrap();
    let receipt = system.publish(pinged()).await.unwrap();
    assert!(receipt.handled().await.unwrap().is_success());
    assert_eq!(
        system.status().await.to_string(),
        "running, volatile: 1 accepted, 0 recovered, 1 finished, 0 of 10000 in flight, 0 behind; healthy",
    );
    let other = system.clone();
    system.shutdown(Duration::from_secs(5)).await.unwrap();
    assert!(!other.status().await.running);
    assert!(matches!(
        other.publish(pinged()).await,
        Err(PublishError::Stopped)
    ));
}

#[tokio::test]
async fn the_bus_can_be_held_as_the_port() {
    let system = EventSystem::builder().start().await.unwrap();
    let bus: Arc<dyn EventBus> = system.bus();
    bus.publish(pinged().into()).await.unwrap();
    assert_eq!(system.statistics().accepted, 1);
}

#[tokio::test]
async fn a_configuration_that_cannot_work_names_the_setting_and_leaves_nothing_in_use() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("events.db");
    let builder = || EventSystem::builder().sqlite(&file);
    let error = builder().workers(0).start().await.unwrap_err();
    assert_eq!(
        chain(&error),
        "the system was not built: workers was not accepted: 0, allowed is 1 to 10000"
    );
    let error = builder().capacity(0).start().await.unwrap_err();
    assert!(
        chain(&error).contains("capacity was not accepted: 0"),
        "{}",
        chain(&error)
    );

    let on = |name: &'static str| builder().on(name, Priority::NORMAL, ignore::<Pinged>);
    let error = on("same")
        .on("same", Priority::LOW, ignore::<Pinged>)
        .start()
        .await
        .unwrap_err();
    assert!(matches!(
        error,
        SystemError::Subscribe(SubscribeError::DuplicateName(_))
    ));
    let error = on("").start().await.unwrap_err();
    assert!(
        chain(&error).contains("subscription.name was not accepted"),
        "{}",
        chain(&error)
    );
    let long: Arc<str> = "x".repeat(256).into();
    let error = builder()
        .on(long, Priority::NORMAL, ignore::<Pinged>)
        .start()
        .await
        .unwrap_err();
    assert!(chain(&error).contains("(256 bytes)"), "{}", chain(&error));
    let error = on("one")
        .on("two", Priority::LOW, ignore::<PingedToo>)
        .start()
        .await
        .unwrap_err();
    assert!(
        chain(&error).contains("\"test.pinged\" was not registered"),
        "{}",
        chain(&error)
    );

    // Whatever was opened on the way is closed again.
    let system = on("one").start().await.unwrap();
    system.shutdown(Duration::from_secs(5)).await.unwrap();
}

#[tokio::test]
async fn a_second_system_on_the_same_file_is_refused_and_the_first_goes_on() {
    let dir = tempdir().unwrap();
    let config = Config {
        store: Store::Sqlite(dir.path().join("events.db")),
        bus: BusConfig {
            workers: 2,
            ..BusConfig::default()
        },
        ..Config::default()
    };
    let first = EventSystem::builder()
        .config(config.clone())
        .on("ping", Priority::NORMAL, ignore::<Pinged>)
        .start()
        .await
        .unwrap();
    let error = EventSystem::builder()
        .config(config)
        .start()
        .await
        .unwrap_err();
    assert!(
        matches!(error, SystemError::Open(OpenError::InUse { .. })),
        "{}",
        chain(&error)
    );
    let text = chain(&error);
    assert!(
        text.contains("events.db") && text.contains(&std::process::id().to_string()),
        "{text}"
    );
    assert!(
        first
            .publish(pinged())
            .await
            .unwrap()
            .handled()
            .await
            .unwrap()
            .is_success()
    );
    first.shutdown(Duration::from_secs(5)).await.unwrap();
}

#[tokio::test]
async fn l2_after_a_shutdown_the_file_can_be_deleted_or_opened_again() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("events.db");
    for run in 1..=3 {
        let system = EventSystem::builder()
            .sqlite(&file)
            .on("ping", Priority::NORMAL, ignore::<Pinged>)
            .start()
            .await
            .unwrap();
        let receipt = system.publish(pinged()).await.unwrap();
        assert_eq!(receipt.recorded().unwrap().position.get(), run);
        assert_eq!(system.status().await.file.as_deref(), Some(&*file));
        let report = system.shutdown(Duration::from_secs(5)).await.unwrap();
        assert_eq!((report.left_in_log, report.unsaved), (0, None));
    }
    std::fs::remove_file(file).unwrap();
}

/// D8, F6: the status tells what is stored, also of a name that nobody is subscribed by any more.
#[tokio::test]
async fn d8_the_status_tells_of_names_that_nobody_is_subscribed_by() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("events.db");
    let start = async |name: &str| {
        let dies = Subscription::from_fn(name, |_: Event<Pinged>, _| async {
            Err(HandlerError::permanent("never"))
        });
        let system = EventSystem::builder().sqlite(&file).subscribe(dies).start();
        let system = system.await.unwrap();
        system.publish(pinged()).await.unwrap();
        system.wait_idle().await.unwrap();
        system
    };
    let system = start("gone").await;
    let status = system.status().await;
    assert_eq!(
        (status.stored_dead_letters(), status.unsubscribed().count()),
        (1, 0)
    );
    system.shutdown(Duration::from_secs(5)).await.unwrap();

    let system = start("stays").await;
    let status = system.status().await;
    let told = status.to_string();
    let expected = "; 2 dead letters; nobody is subscribed as \"gone\", which is 1 behind";
    assert!(told.ends_with(expected), "{told}");
    system.shutdown(Duration::from_secs(5)).await.unwrap();
}
