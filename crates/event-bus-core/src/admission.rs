//! The bound: how many accepted events may take memory at a time.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::Semaphore;

/// Room for events. Publishers from outside share `capacity` places; handlers, which must never
/// wait for room that only they could free, have as many again (P5).
pub(crate) struct Admission {
    capacity: usize,
    places: Semaphore,
    extra: AtomicUsize,
}

/// Whose room an event takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// A place that publishers share.
    Place,
    /// A place that only handlers may take.
    Extra,
}

/// Room that is reserved and not yet taken; given back when dropped.
pub(crate) struct Reservation {
    admission: Arc<Admission>,
    room: Room,
    left: usize,
}

impl Admission {
    pub(crate) fn new(capacity: usize) -> Arc<Self> {
        let places = Semaphore::new(capacity);
        Arc::new(Self {
            capacity,
            places,
            extra: AtomicUsize::new(0),
        })
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Waits for room for `count` events, first come, first served; cancel-safe.
    pub(crate) async fn reserve(self: &Arc<Self>, count: usize) -> Reservation {
        let many = u32::try_from(count).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        if let Ok(permits) = self.places.acquire_many(many).await {
            permits.forget();
        }
        self.reservation(Room::Place, count)
    }

    /// Room for `count` events, if there is any now.
    pub(crate) fn try_reserve(self: &Arc<Self>, count: usize) -> Option<Reservation> {
        let many = u32::try_from(count).ok()?;
        self.places.try_acquire_many(many).ok()?.forget();
        Some(self.reservation(Room::Place, count))
    }

    /// Room for as many of `count` events as there is room for now.
    pub(crate) fn try_reserve_up_to(self: &Arc<Self>, count: usize) -> Option<Reservation> {
        self.try_reserve(self.places.available_permits().min(count))
    }

    /// Room for `count` events that a handler publishes, if there is any now.
    pub(crate) fn try_reserve_inside(self: &Arc<Self>, count: usize) -> Option<Reservation> {
        if let Some(reservation) = self.try_reserve(count) {
            return Some(reservation);
        }
        let within = |extra: usize| {
            extra
                .checked_add(count)
                .filter(|&extra| extra <= self.capacity)
        };
        let update = self
            .extra
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, within);
        update.ok().map(|_| self.reservation(Room::Extra, count))
    }

    fn reservation(self: &Arc<Self>, room: Room, left: usize) -> Reservation {
        Reservation {
            admission: Arc::clone(self),
            room,
            left,
        }
    }

    /// Gives back the room of `count` events.
    pub(crate) fn release(&self, room: Room, count: usize) {
        match room {
            Room::Place => self.places.add_permits(count),
            Room::Extra => {
                self.extra.fetch_sub(count, Ordering::Relaxed);
            }
        }
    }
}

impl Reservation {
    /// Takes the room of one event; whoever takes it gives it back.
    pub(crate) fn take(&mut self) -> Option<Room> {
        self.left = self.left.checked_sub(1)?;
        Some(self.room)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.left > 0 {
            self.admission.release(self.room, self.left);
        }
    }
}
