//! The bound: how many accepted events may take memory at a time.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::Semaphore;

/// Room for events. Publishers from outside wait until fewer than `capacity` events are in memory;
/// handlers, which must never wait for room that only they could free, have as many places again
/// (P5). What comes free pays back what handlers took before it goes to publishers.
pub(crate) struct Admission {
    capacity: usize,
    places: Semaphore,
    /// Places that handlers took beyond the capacity.
    extra: AtomicUsize,
}

/// Room that is reserved and not yet taken; given back when dropped.
pub(crate) struct Reservation {
    admission: Arc<Admission>,
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
        self.reservation(count)
    }

    /// Room for `count` events, if there is any now.
    pub(crate) fn try_reserve(self: &Arc<Self>, count: usize) -> Option<Reservation> {
        let many = u32::try_from(count).ok()?;
        self.places.try_acquire_many(many).ok()?.forget();
        Some(self.reservation(count))
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
        update.ok().map(|_| self.reservation(count))
    }

    fn reservation(self: &Arc<Self>, left: usize) -> Reservation {
        Reservation {
            admission: Arc::clone(self),
            left,
        }
    }

    /// Gives back the room of `count` events.
    pub(crate) fn release(&self, count: usize) {
        let less = |extra: usize| Some(extra.saturating_sub(count));
        let update = self
            .extra
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        let paid_back = update.unwrap_or_default().min(count);
        if count > paid_back {
            self.places.add_permits(count - paid_back);
        }
    }
}

impl Reservation {
    /// Takes the room of one event, if there is some left; whoever takes it gives it back.
    pub(crate) fn take(&mut self) -> bool {
        let taken = self.left > 0;
        self.left -= usize::from(taken);
        taken
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.left > 0 {
            self.admission.release(self.left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p5_handlers_have_as_much_room_again_and_pay_it_back_first() {
        let admission = Admission::new(2);
        let outside = admission.try_reserve(2).unwrap();
        assert!(admission.try_reserve(1).is_none());
        let inside = admission.try_reserve_inside(2).unwrap();
        assert!(admission.try_reserve_inside(1).is_none());
        drop(outside);
        assert!(
            admission.try_reserve(1).is_none(),
            "two events are still in memory"
        );
        drop(inside);
        assert!(admission.try_reserve(3).is_none());
        assert!(admission.try_reserve(2).is_some());
    }

    #[test]
    fn p4_what_is_taken_of_a_reservation_is_not_given_back_with_the_rest() {
        let admission = Admission::new(3);
        let mut reservation = admission.try_reserve(3).unwrap();
        assert!(reservation.take());
        drop(reservation);
        assert!(admission.try_reserve(3).is_none());
        admission.release(1);
        assert!(admission.try_reserve(3).is_some());
    }
}
