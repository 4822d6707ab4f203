//! What is ready to run, by urgency: weighted lanes, none of which starves (D5).

use std::collections::VecDeque;

use domain_events::Urgency;

/// Starts out of 21 that go to each lane while all are full, by `Urgency as usize`.
const WEIGHTS: [u32; 3] = [1, 4, 16];

/// Three queues and how many starts each may still take in this turn.
pub(crate) struct Lanes<T> {
    queues: [VecDeque<T>; 3],
    credits: [u32; 3],
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Self {
            queues: Default::default(),
            credits: WEIGHTS,
        }
    }
}

impl<T> Lanes<T> {
    pub(crate) fn push(&mut self, urgency: Urgency, entry: T) {
        self.queues[urgency as usize].push_back(entry);
    }

    /// Puts an entry that was taken back to the front of its lane, with the start it was to be.
    pub(crate) fn put_back(&mut self, urgency: Urgency, entry: T) {
        self.queues[urgency as usize].push_front(entry);
        self.give_back(urgency);
    }

    /// Takes the next entry that is still `live`, and one credit of its lane; drops the others.
    pub(crate) fn pop(&mut self, live: impl Fn(&T) -> bool) -> Option<T> {
        loop {
            let lane = self.next_lane()?;
            let entry = self.queues[lane].pop_front()?;
            if live(&entry) {
                self.credits[lane] -= 1;
                return Some(entry);
            }
        }
    }

    /// Takes the most urgent entry that is `wanted`, wherever it stands, as a start of its lane.
    pub(crate) fn take(&mut self, wanted: impl Fn(&T) -> bool) -> Option<T> {
        let mut lanes = self.queues.iter_mut().zip(&mut self.credits).rev();
        lanes.find_map(|(queue, credit)| {
            let place = queue.iter().position(&wanted)?;
            *credit = credit.saturating_sub(1);
            queue.remove(place)
        })
    }

    /// Whether there is an entry that is still `live`; drops those before it.
    pub(crate) fn has(&mut self, live: impl Fn(&T) -> bool) -> bool {
        self.queues.iter_mut().any(|queue| {
            while queue.front().is_some_and(|entry| !live(entry)) {
                queue.pop_front();
            }
            !queue.is_empty()
        })
    }

    /// The most urgent lane with entries and credit; all get new credit when none has both.
    fn next_lane(&mut self) -> Option<usize> {
        let find = |lanes: &Self| {
            let may_start =
                |&lane: &usize| !lanes.queues[lane].is_empty() && lanes.credits[lane] > 0;
            (0..3).rev().find(may_start)
        };
        find(self).or_else(|| {
            self.credits = WEIGHTS;
            find(self)
        })
    }

    /// Whether whoever runs an entry of this lane may run another one before the others, which
    /// then counts as a start of the lane.
    pub(crate) fn may_keep(&mut self, urgency: Urgency) -> bool {
        let lane = urgency as usize;
        if self.credits[lane] == 0 {
            let others_wait = (0..3).any(|other| other != lane && !self.queues[other].is_empty());
            if others_wait {
                return false;
            }
            self.credits = WEIGHTS;
        }
        self.credits[lane] -= 1;
        true
    }

    /// Takes back a start of this lane that was not made.
    pub(crate) fn give_back(&mut self, urgency: Urgency) {
        let lane = urgency as usize;
        self.credits[lane] = WEIGHTS[lane].min(self.credits[lane] + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LANES: [Urgency; 3] = [Urgency::Low, Urgency::Normal, Urgency::High];

    #[test]
    fn d5_of_21_starts_16_are_high_4_normal_1_low() {
        let mut lanes = Lanes::default();
        for urgency in LANES {
            (0..100).for_each(|_| lanes.push(urgency, urgency));
        }
        for _ in 0..3 {
            let starts: Vec<_> = (0..21).filter_map(|_| lanes.pop(|_| true)).collect();
            let count = |urgency| starts.iter().filter(|&&start| start == urgency).count();
            assert_eq!(LANES.map(count), [1, 4, 16]);
        }
    }

    #[test]
    fn d5_a_lane_is_first_in_first_out_and_alone_takes_every_start() {
        let mut lanes = Lanes::default();
        (0..50).for_each(|n| lanes.push(Urgency::Low, n));
        let starts: Vec<_> = std::iter::from_fn(|| lanes.pop(|_| true)).collect();
        assert_eq!(starts, (0..50).collect::<Vec<_>>());
    }

    #[test]
    fn d5_keeping_an_aggregate_counts_as_starts_of_its_lane() {
        let mut lanes = Lanes::default();
        for urgency in LANES {
            lanes.push(urgency, urgency);
        }
        assert_eq!(lanes.pop(|_| true), Some(Urgency::High));
        let kept = (0..100)
            .take_while(|_| lanes.may_keep(Urgency::High))
            .count();
        assert_eq!(kept, 15);
        assert_eq!(lanes.pop(|_| true), Some(Urgency::Normal));
        assert_eq!(
            (0..100)
                .take_while(|_| lanes.may_keep(Urgency::Normal))
                .count(),
            3
        );
        assert_eq!(lanes.pop(|_| true), Some(Urgency::Low));
        assert!(lanes.may_keep(Urgency::Low), "nobody else waits");
    }
}
