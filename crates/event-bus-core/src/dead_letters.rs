//! Deliveries given up by a bus without a store: kept in memory, bounded, the loss counted.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use domain_events::DeadLetter;

/// The longest error text that is kept, in bytes (F6).
const MOST_ERROR_BYTES: usize = 4 * 1024;

/// The dead letters of a volatile bus, oldest first.
pub(crate) struct DeadLetters {
    limit: usize,
    kept: Mutex<(VecDeque<DeadLetter>, u64)>,
}

impl DeadLetters {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            kept: Mutex::default(),
        }
    }

    pub(crate) fn keep(&self, letter: DeadLetter) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (letters, evicted) = &mut *kept;
        if letters.len() == self.limit {
            letters.pop_front();
            *evicted += 1;
        }
        letters.push_back(letter);
    }

    /// What is kept, and how many older ones are lost.
    pub(crate) fn list(&self) -> (Vec<DeadLetter>, u64) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        (kept.0.iter().cloned().collect(), kept.1)
    }
}

/// Cuts an error text to [`MOST_ERROR_BYTES`], between characters.
pub(crate) fn cut(mut error: String) -> String {
    let end = (0..=MOST_ERROR_BYTES.min(error.len()))
        .rev()
        .find(|&end| error.is_char_boundary(end));
    error.truncate(end.unwrap_or(0));
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_cut_between_characters() {
        assert_eq!(cut("short".to_owned()), "short");
        let long = format!("{}ü", "x".repeat(MOST_ERROR_BYTES - 1));
        assert_eq!(cut(long).len(), MOST_ERROR_BYTES - 1);
    }
}
