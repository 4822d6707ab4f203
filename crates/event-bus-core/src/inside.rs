//! Whether the present code runs inside a handler, and of which bus.

use std::{
    cell::Cell,
    sync::atomic::{AtomicU64, Ordering},
};

/// A bus of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BusId(u64);

impl BusId {
    pub(crate) fn fresh() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

crate::sync::thread_local! {
    static CURRENT: Cell<Option<BusId>> = const { Cell::new(None) };
}

thread_local! {
    static IN_TRANSACTION: Cell<Option<BusId>> = const { Cell::new(None) };
}

/// Runs `code` as part of a transaction of the store of `bus`.
pub(crate) fn transaction<T>(bus: BusId, code: impl FnOnce() -> T) -> T {
    struct Restore(Option<BusId>);
    impl Drop for Restore {
        fn drop(&mut self) {
            IN_TRANSACTION.set(self.0);
        }
    }
    let _restore = Restore(IN_TRANSACTION.replace(Some(bus)));
    code()
}

/// Whether the present code runs in a transaction of the store of `bus`, for whose end everybody else
/// waits.
pub(crate) fn is_in_transaction(bus: BusId) -> bool {
    IN_TRANSACTION.get() == Some(bus)
}

/// Runs `poll` as part of a handler of `bus`.
pub(crate) fn enter<T>(bus: BusId, poll: impl FnOnce() -> T) -> T {
    struct Restore(Option<BusId>);
    impl Drop for Restore {
        fn drop(&mut self) {
            CURRENT.with(|current| current.set(self.0));
        }
    }
    let _restore = Restore(CURRENT.with(|current| current.replace(Some(bus))));
    poll()
}

/// Whether the present code runs inside a handler of `bus`.
pub(crate) fn is_inside(bus: BusId) -> bool {
    CURRENT.with(Cell::get) == Some(bus)
}
