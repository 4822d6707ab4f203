//! Counts of events.

/// Counts of events (N1): `accepted + recovered = finished + in_flight`.
#[derive(Clone, Copy, Default)]
pub(crate) struct Figures {
    pub(crate) accepted: u64,
    pub(crate) recovered: u64,
    pub(crate) finished: u64,
    pub(crate) in_flight: u64,
    /// Accepted events that are still to be read from the log.
    left_to_log: u64,
}

impl Figures {
    /// Counts a committed event: whether a pipeline has it in hand, and whether the default one has
    /// left it to the log. What others have in hand of such a one counts as taken up besides.
    pub(crate) fn handed_over(&mut self, in_hand: bool, is_left: bool) {
        self.accepted += 1;
        self.left_to_log += u64::from(is_left);
        self.recovered += u64::from(is_left && in_hand);
        self.in_flight += u64::from(in_hand);
        self.finished += u64::from(!in_hand && !is_left);
    }

    /// Counts an event read from the log by a pipeline that wants it or does not: one that was left
    /// to it, or else one of another origin.
    pub(crate) fn taken_up(&mut self, may_be_left: bool, is_wanted: bool) {
        match self.left_to_log.checked_sub(1).filter(|_| may_be_left) {
            Some(left) => self.left_to_log = left,
            None => self.recovered += 1,
        }
        self.in_flight += u64::from(is_wanted);
        self.finished += u64::from(!is_wanted);
    }
}
