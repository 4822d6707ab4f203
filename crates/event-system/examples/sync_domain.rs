//! A domain layer that knows no runtime and no infrastructure, and publishes all the same.

#![expect(clippy::print_stdout, reason = "a program for people")]

use std::{
    future::ready,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use domain_events::UnitOfWork;
use event_system::{Event, EventSystem, Priority};

use domain::{Orders, Placed, Shipped};

/// What a crate would be that depends on `domain-events` alone.
mod domain {
    use std::sync::Arc;

    use domain_events::{
        AggregateRoot, DomainEvent, DomainEventPublisher, PublishError, RaisedEvents, UnitOfWork,
    };
    use serde::{Deserialize, Serialize};

    #[derive(Serialize, Deserialize, DomainEvent)]
    #[domain_event(name = "shop.placed", aggregate = "order", id = order)]
    pub(crate) struct Placed {
        pub(crate) order: String,
    }

    #[derive(Serialize, Deserialize, DomainEvent)]
    #[domain_event(name = "shop.shipped", aggregate = "order", id = order)]
    pub(crate) struct Shipped {
        pub(crate) order: String,
    }

    /// An order: it raises what happens to it.
    struct Order {
        id: String,
        raised: RaisedEvents,
    }

    impl Order {
        fn place(id: &str) -> Self {
            let (id, mut raised) = (id.to_owned(), RaisedEvents::default());
            raised.raise(Placed { order: id.clone() });
            Self { id, raised }
        }

        fn ship(&mut self) {
            let order = self.id.clone();
            self.raised.raise(Shipped { order });
        }
    }

    impl AggregateRoot for Order {
        fn raised(&mut self) -> &mut RaisedEvents {
            &mut self.raised
        }
    }

    /// A service: all that it knows of publishing is the port.
    pub(crate) struct Orders {
        publisher: Arc<dyn DomainEventPublisher>,
    }

    impl Orders {
        pub(crate) fn new(publisher: Arc<dyn DomainEventPublisher>) -> Self {
            Self { publisher }
        }

        /// Places an order and ships it, or does neither: then the caller is told, and has the events
        /// in the unit still, to publish them again.
        pub(crate) fn order(&self, id: &str, unit: &mut UnitOfWork) -> Result<(), PublishError> {
            let mut order = Order::place(id);
            order.ship();
            unit.collect(&mut order);
            unit.publish_sync(&*self.publisher).map(drop)
        }
    }
}

fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    // One thread: what blocks it must not wait for it.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = |what: &'static str| {
        let seen = Arc::clone(&seen);
        move |order: &str| {
            seen.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(format!("{what} {order}"));
        }
    };
    let (placed, shipped) = (note("placed"), note("shipped"));
    let builder = EventSystem::builder()
        .sqlite(folder.path().join("shop.db"))
        .on("placed", Priority::HIGH, move |event: Event<Placed>, _| {
            placed(&event.order);
            ready(Ok(()))
        })
        .on(
            "shipped",
            Priority::NORMAL,
            move |event: Event<Shipped>, _| {
                shipped(&event.order);
                ready(Ok(()))
            },
        );
    let system = runtime.block_on(builder.start())?;
    let orders = Orders::new(Arc::new(system.publisher()));

    // In the runtime, on its only thread; and on a thread that knows none.
    runtime.block_on(async { orders.order("o-1", &mut UnitOfWork::new()) })?;
    thread::scope(|scope| {
        let ordered = scope
            .spawn(|| orders.order("o-2", &mut UnitOfWork::new()))
            .join();
        ordered.map_err(|_| anyhow::anyhow!("the thread has panicked"))
    })??;
    runtime.block_on(system.wait_idle())?;
    runtime.block_on(system.shutdown(Duration::from_secs(10)))?;
    let mut unit = UnitOfWork::new();
    let refused = orders.order("o-3", &mut unit);
    ensure!(refused.is_err(), "published though the system is stopped");
    ensure!(unit.len() == 2, "what was refused is no longer in the unit");
    unit.clear();

    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    println!("{seen:?}");
    for order in ["o-1", "o-2"] {
        let of_order = seen.iter().filter(|line| line.ends_with(order));
        let expected = [format!("placed {order}"), format!("shipped {order}")];
        ensure!(
            of_order.eq(&expected),
            "{order} was not placed and then shipped"
        );
    }
    Ok(())
}
