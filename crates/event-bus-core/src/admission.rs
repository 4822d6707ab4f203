//! The bound: how many accepted events may take memory at a time.

use crate::pipeline::PipelineId;

/// The places of one pipeline (P4). Publishers from outside have `capacity` of them; handlers, which
/// must never wait for room that only they could free, have as many again (P5). What handlers took
/// beyond the capacity is paid back before anybody from outside comes in.
pub(crate) struct Room {
    capacity: usize,
    taken: usize,
    /// Whether it was said that it is nearly full.
    is_nearly_full: bool,
}

/// A room that has become nearly full, or is so no more (B1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Crossing {
    pub(crate) taken: usize,
    pub(crate) capacity: usize,
    pub(crate) is_nearly_full: bool,
}

impl Room {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            taken: 0,
            is_nearly_full: false,
        }
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(crate) fn taken(&self) -> usize {
        self.taken
    }

    /// Whether `count` more events fit.
    pub(crate) fn fits(&self, count: usize) -> bool {
        count <= self.capacity.saturating_sub(self.taken)
    }

    /// Whether `count` more events fit that a handler publishes.
    pub(crate) fn fits_inside(&self, count: usize) -> bool {
        count <= self.capacity.saturating_mul(2).saturating_sub(self.taken)
    }

    pub(crate) fn take(&mut self, count: usize) {
        self.taken += count;
    }

    /// Whether more than 80 % have come to be taken since this was asked last; or, after that, less
    /// than 60 %, so that it is not said again with every event where the two are close. Never of a few
    /// places: there every event passes from one to the other.
    pub(crate) fn crossed(&mut self) -> Option<Crossing> {
        const FEW: usize = 5;
        if self.capacity < FEW {
            return None;
        }
        let (taken, capacity) = (self.taken as u128 * 100, self.capacity as u128);
        let crossed = if self.is_nearly_full {
            taken < capacity * 60
        } else {
            taken > capacity * 80
        };
        if !crossed {
            return None;
        }
        self.is_nearly_full = !self.is_nearly_full;
        Some(Crossing {
            taken: self.taken,
            capacity: self.capacity,
            is_nearly_full: self.is_nearly_full,
        })
    }

    /// Takes the place of one event, if there is one.
    pub(crate) fn try_take(&mut self) -> bool {
        let fits = self.fits(1);
        self.taken += usize::from(fits);
        fits
    }

    pub(crate) fn give_back(&mut self, count: usize) {
        debug_assert!(count <= self.taken, "room was given back twice");
        self.taken = self.taken.saturating_sub(count);
    }
}

/// How many places are needed of each pipeline.
#[derive(Clone, Default)]
pub(crate) struct Needs {
    /// Of the default pipeline, in which most events are.
    pub(crate) shared: usize,
    pub(crate) own: Vec<(PipelineId, usize)>,
}

impl Needs {
    /// Some places of one pipeline.
    pub(crate) fn of(pipeline: PipelineId, count: usize) -> Self {
        let mut needs = Self::default();
        needs.add(pipeline, count);
        needs
    }

    pub(crate) fn add(&mut self, pipeline: PipelineId, count: usize) {
        if pipeline == PipelineId::SHARED {
            self.shared += count;
        } else if let Some((_, other)) = self.own.iter_mut().find(|(id, _)| *id == pipeline) {
            *other += count;
        } else {
            self.own.push((pipeline, count));
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (PipelineId, usize)> {
        let shared = (self.shared > 0).then_some((PipelineId::SHARED, self.shared));
        shared.into_iter().chain(self.own.iter().copied())
    }

    pub(crate) fn has(&self, pipeline: PipelineId) -> bool {
        self.iter().any(|(id, _)| id == pipeline)
    }

    pub(crate) fn is_none(&self) -> bool {
        self.shared == 0 && self.own.is_empty()
    }

    /// Whether both want places of one pipeline.
    pub(crate) fn meets(&self, other: &Self) -> bool {
        (self.shared > 0 && other.shared > 0)
            || self
                .own
                .iter()
                .any(|(id, _)| other.own.iter().any(|(other, _)| id == other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_says_once_that_it_is_nearly_full_and_once_that_it_is_not() {
        let mut room = Room::new(10);
        let mut said = Vec::new();
        for taken in [8, 9, 10, 9, 8, 9, 6, 5, 6, 8, 9] {
            room.give_back(room.taken);
            room.take(taken);
            said.extend(room.crossed().map(|it| (it.taken, it.is_nearly_full)));
        }
        assert_eq!(said, [(9, true), (5, false), (9, true)]);
    }

    #[test]
    fn p5_handlers_have_as_much_room_again_and_pay_it_back_first() {
        let mut room = Room::new(2);
        room.take(2);
        assert!(!room.fits(1) && room.fits_inside(2));
        room.take(2);
        assert!(!room.fits_inside(1));
        room.give_back(2);
        assert!(!room.fits(1), "two events are still in memory");
        room.give_back(2);
        assert!(room.fits(2) && !room.fits(3));
    }
}
